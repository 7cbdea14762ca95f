"""The table of contents: what `from lejax import *`, `dir` and `help` show."""

from __future__ import annotations

import inspect
import pydoc
import re

import pytest

import lejax

NAMES = [
    name
    for name, thing in vars(lejax).items()
    if not name.startswith("_") and not inspect.ismodule(thing)
]
GROUPS = (
    "Samplers",
    "Transformations",
    "Whole runs",
    "Schedules",
    "Pure functions and diagnostics",
    "Results and states",
)


def entries():
    """The names in the module's docstring, in their order."""
    return re.findall(r"^    (\w+) +\w", lejax.__doc__, re.MULTILINE)


def test_all_is_complete():
    assert sorted(lejax.__all__) == sorted(NAMES)


def test_all_is_sorted():
    """Classes before functions, each by the alphabet, as ruff has it."""
    assert lejax.__all__ == sorted(
        lejax.__all__, key=lambda name: (name[0].islower(), name)
    )


def test_dir_has_public_names_alone():
    assert set(dir(lejax)) == {*NAMES, "__version__"}
    assert not any(inspect.ismodule(getattr(lejax, name)) for name in dir(lejax))


def test_a_star_imports_the_public_names():
    found = {}
    exec("from lejax import *", found)
    assert found.keys() - {"__builtins__"} == set(NAMES)


def test_the_docstring_names_each_once():
    assert sorted(entries()) == sorted(NAMES)


def test_the_docstring_has_the_groups():
    found = re.findall(r"^([A-Z][a-z ]+)(?::.*)?$", lejax.__doc__, re.MULTILINE)
    assert tuple(found) == GROUPS


def test_help_begins_with_the_docstring():
    text = pydoc.plain(pydoc.render_doc(lejax))
    description = text.split("DESCRIPTION\n")[1]
    assert all(re.search(rf"^ +{name} ", description, re.MULTILINE) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_its_definition(name):
    assert getattr(lejax, name).__name__ == name
    assert getattr(lejax, name).__module__.startswith("lejax.")
