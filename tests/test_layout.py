"""Where files lie: each room imports only what stands left of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LEJAX = Path(__file__).parents[1] / "lejax"
# From what knows nothing of the others to what knows all of them.
ROOMS = (
    "_internal",
    "_info",
    "_posterior",
    "_tracing",
    "_spaces",
    "_estimators",
    "_covariance",
    "_samplers",
    "_schedules",
    "_transforms",
    "_search",
    "_run",
    "__init__",
)
MODULES = sorted(LEJAX.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(LEJAX.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source):
    """Every module of lejax that an import statement names, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "lejax")


def backward_imports(name, source):
    """The imports of a module that run to its right, or to the public names."""
    parts = name.split(".")
    room = ROOMS.index(parts[1]) if len(parts) > 1 else len(ROOMS)
    for imported in imported_modules(source):
        target = imported.split(".")[1]
        if target not in ROOMS or ROOMS.index(target) > room:
            yield imported


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_from_right_to_left(path):
    assert list(backward_imports(module_name(path), path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "from lejax._samplers.sampler import Sampler",
        "def f():\n    import lejax._run.minimize",
        "from lejax import importance",
        "from lejax import _samplers",
    ],
)
def test_an_arrow_that_runs_back_is_seen(source):
    assert list(backward_imports("lejax._estimators.draws", source))


def test_the_top_level_is_a_table_of_contents():
    entries = {path.stem for path in LEJAX.iterdir() if path.name != "__pycache__"}
    assert entries == {*ROOMS, "py"}
    assert len(entries) <= 14


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {
        module_name(path): {
            name.rpartition(".")[0] if name not in names else name
            for name in imported_modules(path.read_text())
        }
        for names in [set(map(module_name, MODULES))]
        for path in MODULES
    }
    done = set()
    while ready := {name for name in graph if graph[name] <= done} - done:
        done |= ready
    assert graph.keys() == done, "these wait for each other"
