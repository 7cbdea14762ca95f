"""All tables and figures, one after the other; what is there is not computed again."""

from __future__ import annotations

import importlib

from experiments import hosts, interruption
from experiments.command import execute
from experiments.options import Options

EXPERIMENTS = (
    "figures_2_1_2_2",
    "figure_5_1",
    "theorems_3_1_4_1",
    "theorems_3_2_4_2",
    "section_5_2",
    "table_6_2",
    "tuning",
    "table_6_1",
    "chains",
    "causes",
    "section_6_1",
    "figure_6_2",
    "figure_6_3",
    "figure_6_4",
    "figure_6_5",
    "stability",
    "section_5_1_2",
    "monotonicity",
)


def main(options: Options) -> None:
    """Run them all."""
    for number, name in enumerate(EXPERIMENTS, start=1):
        print(f"\n[{number}/{len(EXPERIMENTS)}] {name}")
        importlib.import_module(f"experiments.{name}").main(options)
        # Not every experiment has blocks after which it could stop.
        if any(hosts.any_of(interruption.requested())):
            raise interruption.InterruptedRunError(
                "Stopped. The same command goes on from here."
            )


if __name__ == "__main__":
    execute(main, __doc__)
