"""The strict environment in which lejax's own code is tested, quick to compile for."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib as mpl
import pytest

mpl.use("agg")
# LLVM straight from HLO: on a CPU an update compiles in a third of the time.
QUICK_CODE = "xla_cpu_use_fusion_emitters"
CACHE = "JAX_COMPILATION_CACHE_DIR"
CACHE_BYTES = 2 * 2**30


def pytest_addoption(parser):
    parser.addoption(
        "--default-compiler",
        action="store_true",
        help="compile as for users, with all optimisations: slower",
    )


def pytest_configure(config):
    """What one test compiles no other has to: here, in workers, and in the next run."""
    if not hasattr(config, "workerinput"):
        flags = os.environ.get("XLA_FLAGS", "")
        quick = not config.getoption("--default-compiler")
        if quick and QUICK_CODE not in flags:
            quick_flags = f"{flags} --{QUICK_CODE}=false".strip()
            if _known(quick_flags):  # not with jax 0.12
                os.environ["XLA_FLAGS"] = quick_flags
        if CACHE not in os.environ and hasattr(config, "cache"):
            folder = Path(config.cache.mkdir("compiled")) / _machine()
            _bounded(folder)
            os.environ[CACHE] = str(folder)
        # Small programs are many: the same operations in every file of tests.
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # As other processes read it from the environment.
    jax.config.update("jax_compilation_cache_dir", os.environ.get(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # With the cache, tests mostly trace and lower: without a way back to the lines of
    # the source, and with the many objects of a trace looked through less often.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    gc.set_threshold(200_000, 20, 100)


def _known(flags):
    """Whether XLA has these flags: it takes an unknown one for a fatal error."""
    return not subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
    ).returncode


def _machine():
    """A name for what compiled programs depend on."""
    try:
        cpu = Path("/proc/cpuinfo").read_text()
        features = next(line for line in cpu.splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        features = platform.processor()
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    described = [*versions, os.environ.get("XLA_FLAGS", ""), features]
    digest = hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
    return f"jax-{versions[0]}-{digest}"


def _bounded(folder):
    """Remove what is oldest of all that was compiled, beyond `CACHE_BYTES`."""
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    stats = sorted(((path.stat(), path) for path in files), key=lambda s: s[0].st_mtime)
    total = sum(stat.st_size for stat, _ in stats)
    for stat, path in stats:
        if total <= CACHE_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """No implicit promotion, except around other people's code (flax, experiments)."""
    mode = "standard" if request.node.get_closest_marker("standard") else "strict"
    with jax.numpy_dtype_promotion(mode):
        yield


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Let go of a module's programs: a process has room for so many mappings only."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    """Without XLA's costly passes, but where tests run for longer than they compile."""
    runs = request.node.get_closest_marker("runs")
    by_default = request.config.getoption("--default-compiler")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not (runs or by_default))
    yield
    jax.config.update("jax_disable_most_optimizations", before)
