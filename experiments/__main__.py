"""Makes all tables and figures; results that exist are not computed again."""

from __future__ import annotations

from experiments.common import hosts, workers
from experiments.common.command import execute, printed, run
from experiments.common.options import Options

# These use one thread most of the time, so they run side by side, the longest first.
SINGLE = (
    "monotonicity",
    "section_5_1_2",
    "section_5_2",
    "figures_2_1_2_2",
    "theorems_3_2_4_2",
    "figure_5_1",
    "theorems_3_1_4_1",
)
# Timings run alone; the others spread their runs over processes themselves.
STUDIES = (
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
)
EXPERIMENTS = SINGLE + STUDIES


def main(options: Options) -> None:
    """Runs all experiments."""
    numbers = iter(range(1, len(EXPERIMENTS) + 1))

    def announce(name: str) -> None:
        print(f"\n[{next(numbers)}/{len(EXPERIMENTS)}] {name}", flush=True)

    tasks = {name: (name, options) for name in SINGLE}
    count = workers.count(options)
    for name, said in workers.spread(printed, tasks, count, lambda updates: None):
        announce(name)
        print(said, end="", flush=True)
    for name in STUDIES:
        announce(name)
        run(name, options)
        hosts.stop_if_requested()


if __name__ == "__main__":
    execute(main, __doc__)
