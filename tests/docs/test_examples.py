"""The recipes for frameworks: short, and they train."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
GUIDES = sorted((Path(__file__).parents[2] / "docs").glob("*/*.md"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_short_and_in_a_guide(path):
    assert len(path.read_text().splitlines()) <= 60
    assert any(f'"examples/{path.name}"' in page.read_text() for page in GUIDES)


@pytest.mark.standard
@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    if path.stem == "simulator":  # whose workers read the main file themselves
        said = subprocess.run(
            [sys.executable, path], check=True, capture_output=True, text=True
        ).stdout
        lost, *_, off = map(float, re.findall(r"\d+\.?\d*", said))
        assert lost == 1  # what the worker that died had in hand
        assert off < 3
        return
    names = runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    if path.stem == "orbax_checkpoint":
        assert said.endswith("the same: True\n")
        assert (names["state_again"][0].step == 20).all()
        return
    assert float(re.findall(r"\d+\.\d+", said)[-1]) < 0.15  # mistakes
