"""The waiting time of a new user: a fresh notebook runs the README's quickstart.

The time is from the start of the kernel to the result, with nothing compiled before.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import time
from pathlib import Path

import nbformat
import tyro
from nbclient import NotebookClient

from experiments.common import results

README = Path(__file__).parents[2] / "README.md"


@dataclasses.dataclass(frozen=True)
class Config:
    """The number of notebooks, and the folder of the result."""

    rounds: int = 5
    """Number of notebooks, which are run one after another."""
    output: Path = Path("results")
    """Folder of the results."""


def quickstart() -> str:
    """The first block of code of the README."""
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def seconds(code: str) -> float:
    """The wall time of a new kernel that runs this code and ends."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    start = time.perf_counter()
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    taken = time.perf_counter() - start
    said = "".join(out.get("text", "") for out in notebook.cells[0].outputs)
    assert "smoothed:" in said, said
    return taken


def main(config: Config) -> None:
    """Measure, print the median, and write it down."""
    code = quickstart()
    times = [round(seconds(code), 2) for _ in range(config.rounds)]
    median = statistics.median(times)
    print(f"first result: median {median:.1f} s ({min(times):.1f} to {max(times):.1f})")
    results.write_json(
        config.output / "first_result.json", config, seconds=times, median=median
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
