"""Every public name has a docstring from one template, whose example runs."""

from __future__ import annotations

import doctest

import pytest

import lejax

PUBLIC = [name for name in vars(lejax) if not name.startswith("_")]
FACTORIES = [name for name in PUBLIC if name[0].islower()]


@pytest.mark.parametrize("name", PUBLIC)
def test_documented(name):
    assert len(vars(lejax)[name].__doc__ or "") > 80


@pytest.mark.parametrize("name", FACTORIES)
def test_docstring(name):
    """In the strict environment of the other tests, warnings being errors."""
    thing = vars(lejax)[name]
    for section in ("Args:", "Returns:", "Raises:", "Example:", "References:"):
        assert f"\n    {section}\n" in thing.__doc__, section
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    assert test.examples
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.failed == 0
