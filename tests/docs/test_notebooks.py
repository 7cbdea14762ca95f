"""The notebooks run from a clean kernel, and are committed with what they show."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ASSERT = re.compile(r"^\s*(assert |np\.testing\.assert|check_mean\()", re.MULTILINE)
PRIVATE = re.compile(r"\blejax\._|\bexperiments\b|from lejax import _")
PLACE = re.compile(r"(?<!\w)/(home|root|tmp|work|usr|Users)/")

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def figures(notebook):
    return [out for out in outputs(notebook) if "image/png" in out.get("data", {})]


def check_outputs(notebook):
    """Figures are there, and neither an error nor a warning beside them."""
    assert len(figures(notebook)) >= 3
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


# The warnings of ipykernel, zmq and nbclient are not ours.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_runs_from_a_clean_kernel(path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows figures
    notebook = nbformat.read(path, as_version=4)
    kept = len(figures(notebook))
    for cell in code_cells(notebook):
        cell.outputs = []
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()  # raises where a cell does
    gc.collect()  # what sockets leave behind warns here, not in another test
    check_outputs(notebook)
    assert len(figures(notebook)) == kept


def test_is_committed_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata for cell in notebook.cells)  # no times, no tags
    text = path.read_text()
    assert not PLACE.search(text)
    assert len(text) < 600_000


def test_asserts_what_it_concludes_by_public_names(path):
    notebook = nbformat.read(path, as_version=4)
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert len(ASSERT.findall(source)) >= 3
    assert not PRIVATE.search(source)
    assert "import lejax" in source
