"""Every public name has a docstring from one template, whose example runs."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import re

import pytest

import lejax

PUBLIC = {name: vars(lejax)[name] for name in vars(lejax) if not name.startswith("_")}
# A sampler, or a search's rule, is a frozen dataclass, and made like a function is
# called.
FUNCTIONS = [
    name
    for name, thing in PUBLIC.items()
    if inspect.isfunction(thing)
    or (dataclasses.is_dataclass(thing) and thing is not lejax.Sampler)
]


def sections(thing):
    """The headings of a docstring, in their order."""
    return re.findall(r"^    (\w+):$", thing.__doc__, re.MULTILINE)


def test_public_names_are_functions_and_tuples():
    for name, thing in PUBLIC.items():
        assert name in FUNCTIONS or issubclass(thing, (tuple, lejax.Sampler))


@pytest.mark.parametrize("name", PUBLIC)
def test_template(name):
    """One line, the equation, arguments, what comes back, errors, example, source."""
    thing = PUBLIC[name]
    first, blank, *_ = thing.__doc__.splitlines()
    assert first.endswith(".")
    assert blank == ""
    if name not in FUNCTIONS:
        assert sections(thing) == ["Attributes", "Examples"]
        for field in getattr(thing, "_fields", ()):
            assert re.search(rf"^        {field}: ", thing.__doc__, re.MULTILINE)
        return
    assert sections(thing) == ["Args", "Returns", "Raises", "Examples", "References"]
    before, arguments = thing.__doc__.split("\n    Args:\n")
    assert re.search(r"^        .* [=≈←] ", before, re.MULTILINE), "no equation"
    arguments = arguments.split("\n    Returns:\n")[0]
    for parameter in inspect.signature(thing).parameters:
        assert re.search(rf"^        {parameter}: ", arguments, re.MULTILINE), parameter


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    """In the strict environment of the other tests, warnings being errors."""
    (test,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    assert test.examples
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.failed == 0
