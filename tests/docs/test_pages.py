"""The code of README and documentation runs as printed, and prints what is there."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

import lejax

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if not page.is_symlink()),
]
# A block of code, and what it prints where that follows.
BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE
)


# Settings that pages show.
CHANGED = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def blocks(page):
    """Code and output. Files of `examples` are fenced otherwise, and tested there."""
    return BLOCK.findall(page.read_text())


@pytest.mark.standard
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_runs_as_printed(page, capsys, monkeypatch, tmp_path):
    """The blocks of a page in their order, each going on from the one before."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    settings = {name: getattr(jax.config, name) for name in CHANGED}
    try:
        for code, said in blocks(page):
            exec(compile(code, str(page), "exec"), names)
            assert capsys.readouterr().out == said
    finally:
        for name, value in settings.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page):
    for line in page.read_text().splitlines():
        assert len(line) <= 120 or "|" in line or "](" in line or "$" in line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_is_left_out(page):
    fences = re.findall(r"^```(\w+)$", page.read_text(), re.MULTILINE)
    assert set(fences) <= {"python", "text", "sh", "sql"}


def test_the_readme_can_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_public_names_are_listed():
    """Each has a page, made of the package's docstring."""
    listed = re.findall(r"^    (\w+) ", lejax.__doc__, re.MULTILINE)
    assert sorted(listed) == sorted(lejax.__all__)
