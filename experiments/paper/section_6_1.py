"""Section 6.1: both networks by plain SGD, with the accuracies of the paper."""

from __future__ import annotations

import dataclasses

from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.methods import Run
from experiments.common.options import Options
from experiments.common.study import dataset, study
from experiments.paper import tuning

# Hidden units, epochs, the paper's accuracy.
NETWORKS = {
    "784-10": (0, 5, "0.912 after 5 epochs"),
    "784-200-10": (200, 20, "0.989, its best case"),
}


def main(options: Options) -> None:
    """Train for whole epochs and test on all test images."""
    train_images = len(dataset(options.data, options.data_dir).train_labels)
    runs = {}
    for network, (hidden, epochs, _) in NETWORKS.items():
        updates = options.updates or epochs * (train_images // 20)
        paper = Run(
            "SGD", hidden=hidden, updates=updates, evaluations=5, test_images=10_000
        )
        runs[f"{network}, the paper's rate .01"] = paper
        best = tuning.chosen(options)["SGD, equal time"]
        runs[f"{network}, tuned rate"] = dataclasses.replace(
            paper, cosine=best.cosine, learning_rates=best.learning_rates
        )
    found = study("section_6_1", runs, options, seeds=3)
    print("\nSection 6.1: test accuracy of plain SGD, all test images")
    table = {}
    for label, curves in found.items():
        mean, width = plotting.interval(curves.accuracy[0][:, -1])
        stated = NETWORKS[label.partition(",")[0]][2]
        print(f"{label:<36}{mean:.4f} ±{width:.4f}   (paper: {stated})")
        table[label] = {"mean": float(mean), "half_width": float(width)}
    results.add(options.output / "section_6_1.json", table=table)


if __name__ == "__main__":
    execute(main, __doc__)
