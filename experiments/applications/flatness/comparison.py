"""Do smoothed losses lead to flatter minima, and are flatter ones better?

The paper's 784-200-10 network is trained by plain SGD, momentum, Adam, SAM, Entropy-SGD
and every sampler of lejax, at equal epochs and at equal seconds. The results are the
test accuracy, the flatness of the training loss (`sharpness.py`) and the test accuracy
under noise on all weights. Rates and scales (`contenders.py`) are chosen on a
validation split, at equal epochs, with one seed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lejax
from experiments.applications.flatness import figure, sharpness
from experiments.applications.flatness.contenders import Contender, contenders
from experiments.applications.flatness.contest import (
    Config,
    Program,
    Setting,
    number_of_updates,
    program,
    seconds_per_update,
    setting,
    trained,
)
from experiments.common import models, plotting, results
from experiments.common.training import held_out

TAUS = (1e-4, 1e-3, 1e-2)
SIGMAS = (0.0, 0.05, 0.1, 0.2)
BUDGETS = ("equal epochs", "equal seconds")
Record = dict[str, Any]


def measured(here: Setting) -> Callable[[Any], dict[str, Any]]:
    """The function that measures a network: its parameters to all entries of tables."""
    network = models.dense_classifier(here.widths, 0)
    sizes, dataset = here.sizes, here.dataset
    size = len(dataset.train_labels)
    chosen = np.random.default_rng(0).permutation(size)[: sizes.images]
    batch = dataset.train_images[chosen], dataset.train_labels[chosen]
    test = dataset.test_images, dataset.test_labels
    # For F_τ, pairs cancel the linear part; for F^H, every example has its own draws.
    entropy = lejax.importance(sizes.draws, credit=False, signs_per_draw=1)
    warm = lejax.score_function(sizes.draws // 2)

    def all_at(params: Any, batch: Any, test: Any) -> dict[str, Any]:
        keys = iter(jax.random.split(jax.random.key(0), 3 + len(SIGMAS)))
        loss = functools.partial(network.loss, batch=batch)
        eigenvalues = sharpness.leading_eigenvalues(
            loss, params, next(keys), products=sizes.products
        )
        spread = sharpness.trace(loss, params, next(keys), sizes.draws)
        smoothing = next(keys)

        def excess(sampler: lejax.Sampler) -> sharpness.Estimate:
            # One program for all τ.
            of = functools.partial(
                sharpness.excess, network.loss, params, batch, smoothing, sampler
            )
            return jax.lax.map(of, jnp.asarray(TAUS))

        accuracy = functools.partial(network.accuracy, batch=test)
        noisy = [
            sharpness.under_noise(accuracy, params, next(keys), sigma, sizes.noises)
            if sigma
            else accuracy(params)
            for sigma in SIGMAS
        ]
        return {
            "training_loss": loss(params),
            "accuracy": noisy,
            "eigenvalues": eigenvalues,
            "trace": spread,
            "sam_sharpness": sharpness.sam_sharpness(loss, params),
            "excess": {"local_entropy": excess(entropy), "heat": excess(warm)},
        }

    compiled = jax.jit(all_at)

    def at(params: Any) -> dict[str, Any]:
        found = compiled(params, batch, test)
        return jax.tree.map(lambda x: float(f"{x:.5g}"), _lists(found))

    return at


def _lists(found: Any) -> Any:
    """Arrays and tuples as lists of numbers."""
    if isinstance(found, dict):
        return {name: _lists(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_lists(value) for value in found]
    return np.asarray(found).tolist()


def candidates(contender: Contender, here: Setting) -> list[tuple[float, float]]:
    """The rates and scales to choose from."""
    few = here.sizes.choices
    return list(itertools.product(contender.rates[:few], contender.scales[:few]))


def validated(of: Program, here: Setting, rate: float, scale: float) -> Record:
    """The accuracy of a candidate on the validation split, one seed."""
    split = held_out(here.dataset)
    size = len(split.train_labels)
    updates = updates_of_epochs(size, of, here)
    params, _ = trained(of, here, size, 0, updates, rate, scale)
    network = models.dense_classifier(here.widths, 0)
    right = network.accuracy(params, (split.test_images, split.test_labels))
    return {"rate": rate, "scale": scale, "accuracy": round(float(right), 5)}


def updates_of_epochs(size: int, of: Program, here: Setting) -> int:
    """The number of updates that use every training image `epochs` times."""
    batches = here.config.epochs * size // here.config.batch_size
    return number_of_updates(batches, of, here)


def best(found: list[Record]) -> Record:
    """The candidate that is chosen."""
    return max(found, key=lambda candidate: candidate["accuracy"])


def lengths(
    programs: Mapping[str, Program], seconds: Mapping[str, float], here: Setting
) -> dict[str, dict[str, int]]:
    """The number of updates of every method, by budget."""
    size = len(here.dataset.train_labels)
    return {
        BUDGETS[0]: {
            name: updates_of_epochs(size, of, here) for name, of in programs.items()
        },
        BUDGETS[1]: {
            name: number_of_updates(
                int(here.config.seconds / seconds[name] * of.batches), of, here
            )
            for name, of in programs.items()
        },
    }


def compare(here: Setting) -> Record:
    """Tune, time and train, writing after each step; results that exist are kept."""
    config, sizes = here.config, here.sizes
    path = config.output / "flatness.json"
    all_of_them = contenders(sizes.samples, sizes.few)
    programs = {name: program(c, here) for name, c in all_of_them.items()}
    record = results.kept(path, config, data=here.dataset.name) or {"tuning": {}}
    record = {k: record[k] for k in ("tuning", "seconds", "runs") if k in record}

    def write() -> None:
        results.write_json(path, config, data=here.dataset.name, **record)

    total = sum(len(candidates(c, here)) for c in all_of_them.values())
    total += len(BUDGETS) * config.seeds * len(all_of_them)
    with tqdm(total=total, unit="run") as bar:
        for name, contender in all_of_them.items():
            bar.set_description(f"tuning {name}")
            found = record["tuning"].setdefault(name, [])
            seen = [(candidate["rate"], candidate["scale"]) for candidate in found]
            for rate, scale in candidates(contender, here):
                if (rate, scale) not in seen:
                    found.append(validated(programs[name], here, rate, scale))
                    write()
                bar.update()
        if "seconds" not in record:
            record["seconds"] = seconds_per_update(programs, here)
            write()
        runs = record.setdefault("runs", {budget: {} for budget in BUDGETS})
        measure = measured(here)
        for budget, updates in lengths(programs, record["seconds"], here).items():
            for seed, name in itertools.product(range(config.seeds), all_of_them):
                bar.set_description(f"{budget}, seed {seed}, {name}")
                of_name = runs[budget].setdefault(name, [])
                chosen = best(record["tuning"][name])
                head = {
                    "rate": chosen["rate"],
                    "scale": chosen["scale"],
                    "updates": updates[name],
                }
                if len(of_name) <= seed or not head.items() <= of_name[seed].items():
                    params, spent = trained(
                        programs[name],
                        here,
                        len(here.dataset.train_labels),
                        seed,
                        **head,
                    )
                    found = {"seconds": round(spent, 3)} | measure(params)
                    of_name[seed : seed + 1] = [head | found]
                    write()
                bar.update()
    return record


COLUMNS: dict[str, Callable[[Record], float]] = {
    "test accuracy": lambda run: run["accuracy"][0],
    **{
        f"σ = {sigma:g}": lambda run, i=i: run["accuracy"][i]
        for i, sigma in enumerate(SIGMAS)
        if sigma
    },
    "training loss": lambda run: run["training_loss"],
    "λ₁": lambda run: run["eigenvalues"][0],
    "trace": lambda run: run["trace"][0],
    "SAM": lambda run: run["sam_sharpness"],
    **{
        f"F{sign} - f, τ = {tau:g}": lambda run, k=kind, i=i: run["excess"][k][0][i]
        for kind, sign in (("local_entropy", ""), ("heat", "ᴴ"))
        for i, tau in enumerate(TAUS)
    },
}


def table(record: Record, budget: str) -> str:
    """The table of a budget in Markdown."""
    head = ["method", "rate", "scale", "updates", "seconds", *COLUMNS]
    lines = [head, ["---"] * len(head)]
    for name, of_name in record["runs"][budget].items():
        first = of_name[0]
        seconds = np.median([run["seconds"] for run in of_name])
        lines.append(
            [
                name,
                f"{first['rate']:g}",
                f"{first['scale']:g}" if first["scale"] else "",
                str(first["updates"]),
                f"{seconds:.1f}",
                *(
                    plotting.shown([get(run) for run in of_name])
                    for get in COLUMNS.values()
                ),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(config: Config) -> None:
    """Compare, print and plot."""
    record = compare(setting(config))
    print(f"{results.device_name()}; {config.seeds} seeds, mean ± 95 % interval")
    for budget in BUDGETS:
        print(f"\n{budget}\n\n{table(record, budget)}")
    figure.draw(config.output / "flatness.png", record["runs"], SIGMAS)
