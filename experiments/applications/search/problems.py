"""The 24 functions of BBOB, evaluated in lock step, with what was reached when."""

from __future__ import annotations

import dataclasses

import ioh
import numpy as np

FUNCTIONS = tuple(range(1, 25))
# f - min f, from 10² to 10⁻⁸, as COCO has them.
TARGETS = 10 ** np.linspace(2, -8, 51)
# Those of the tables.
NAMED = (1e1, 1e0, 1e-1, 1e-3, 1e-6)


@dataclasses.dataclass
class Problems:
    """Functions and instances in d dimensions, each with a budget and a start."""

    d: int
    functions: tuple[int, ...]
    instances: tuple[int, ...]
    budget: int

    def __post_init__(self) -> None:
        self.labels = [(f, i) for f in self.functions for i in self.instances]
        self.all = [
            ioh.get_problem(
                f, instance=i, dimension=self.d, problem_class=ioh.ProblemClass.BBOB
            )
            for f, i in self.labels
        ]
        self.least = [problem.optimum.y for problem in self.all]
        self.starts = np.array(
            [np.random.default_rng([f, i]).uniform(-4, 4, self.d) for f, i in self]
        )
        self.spent = np.zeros(len(self.all), int)
        # After how many evaluations each target was reached.
        self.reached = np.full((len(self.all), len(TARGETS)), np.inf)

    def __iter__(self):
        return iter(self.labels)

    def left(self, number: int) -> int:
        """How many evaluations a problem may still have."""
        return self.budget - int(self.spent[number])

    def evaluate(self, number: int, points: np.ndarray) -> np.ndarray:
        """Losses of a problem, as many as the budget allows and NaN beyond."""
        allowed = points[: self.left(number)]
        losses = np.full(len(points), np.nan)
        if not len(allowed):
            return losses
        found = np.array(self.all[number](allowed.tolist()))
        losses[: len(found)] = found
        best = np.minimum.accumulate(found - self.least[number])
        hit = best[:, None] <= TARGETS
        new = hit.any(0) & np.isinf(self.reached[number])
        after = self.spent[number] + 1 + hit.argmax(0)
        self.reached[number] = np.where(new, after, self.reached[number])
        self.spent[number] += len(found)
        return losses

    def named(self, budget: int) -> np.ndarray:
        """The share of the named targets that each problem reached so soon."""
        which = [int(np.abs(np.log(TARGETS / t)).argmin()) for t in NAMED]
        return (self.reached[:, which] <= budget).mean(1)

    def curve(self, budgets: np.ndarray) -> np.ndarray:
        """The share of all (problem, target) pairs, by evaluations."""
        return (self.reached[..., None] <= budgets).mean((0, 1))
