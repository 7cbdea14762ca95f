"""The strict environment in which lejax's own code is tested."""

from __future__ import annotations

import os
import tempfile

import jax
import matplotlib as mpl
import pytest

mpl.use("agg")
COMPILED = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config):
    """What one test compiles no other has to: here, in workers and in subprocesses."""
    if COMPILED not in os.environ:
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        os.environ[COMPILED] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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
    """Without XLA's costly passes, where tests compile for longer than they run."""
    before = jax.config.read("jax_disable_most_optimizations")
    if request.node.get_closest_marker("compiles"):
        jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
