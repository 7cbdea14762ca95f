"""The README's code runs as printed, and prints what is printed there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lejax

README = (Path(__file__).parents[2] / "README.md").read_text()


EXAMPLES = re.findall(
    r"```python\n(.*?)```.*?```text\n(.*?)```", README, flags=re.DOTALL
)
NAMES = [
    "quickstart",
    "loop",
    "samplers",
    "report",
    "posterior",
    "callback",
    "bounds",
    "devices",
]


def test_there_are_examples():
    assert len(EXAMPLES) == README.count("```python") == len(NAMES)


@pytest.mark.standard
@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=NAMES)
def test_example(code, output, capsys):
    assert len(code.splitlines()) <= 30
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == output


def test_table_names_everything_that_makes_something():
    rows = re.findall(r"^\| `(\w+)` .*\((lejax/[\w/]+\.py)\) \|$", README, re.MULTILINE)
    functions = {n for n in vars(lejax) if n[0].islower() and not n.startswith("_")}
    assert {name for name, _ in rows} == functions
    for name, file in rows:
        source = (Path(__file__).parents[2] / file).read_text()
        assert re.search(rf"^(def|class) {name}\(", source, re.MULTILINE)
