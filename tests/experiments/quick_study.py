"""Write quick_study.json: the quick study on the digits, over twenty seeds."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path

import numpy as np

from experiments.common.options import Options

NAMES = (
    "table_6_1",
    "chains",
    "causes",
    "section_6_1",
    "figure_6_2",
    "figure_6_3",
    "figure_6_4",
    "figure_6_5",
    "stability",
)

if __name__ == "__main__":
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        # The choice of rates is that of the tests, which tune with one seed.
        importlib.import_module("experiments.paper.tuning").main(
            Options(quick=True, data="digits", seeds=None, output=output)
        )
        options = Options(quick=True, data="digits", seeds=20, output=output)
        for name in NAMES:
            importlib.import_module(f"experiments.paper.{name}").main(options)
            runs = json.loads((output / f"{name}.json").read_text())["runs"]
            seen[name] = {
                label: [
                    np.mean(run["accuracy"], axis=1).round(4).tolist(),
                    np.std(run["accuracy"], axis=1, ddof=1).round(4).tolist(),
                ]
                for label, run in runs.items()
            }
    Path(__file__).with_name("quick_study.json").write_text(json.dumps(seen) + "\n")
