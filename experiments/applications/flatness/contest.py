"""The training of the contenders: a few programs for all rates, scales and lengths."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.applications.flatness.contenders import Contender, cosine
from experiments.common import data, models
from experiments.common.training import batch_indices, descend

ROUNDS = 9


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    data: data.Name = "auto"
    """Data set."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps its data."""
    seeds: int = 5
    """Runs of every method: seeds 0, 1, …"""
    epochs: int = 2
    """Of every method, at equal epochs."""
    seconds: float = 10.0
    """Of every method, at equal seconds."""
    batch_size: int = 100
    """Training images of a batch."""
    quick: bool = False
    """A run of seconds, to see that everything works: its figures mean nothing."""
    output: Path = Path("results")
    """Folder of the results. What is there already is not computed again."""


class Sizes(NamedTuple):
    """What a quick run has less of.

    Attributes:
        hidden: units.
        samples: J of what needs no gradients.
        few: gradients of an update of `sgld` and of `robbins_monro`.
        choices: of rates and of scales that are tried, at the most.
        block: batches of a compiled program.
        images: training images on which flatness is measured.
        draws: of Hutchinson's trace, and samples of F_τ.
        products: of the Hessian with a vector, by Lanczos.
        noises: of the weights.
    """

    hidden: int = 200
    samples: int = 64
    few: int = 20
    choices: int = 4
    block: int = 40
    images: int = 2000
    draws: int = 50
    products: int = 30
    noises: int = 20


QUICK = Sizes(8, 4, 4, 1, 20, 100, 6, 8, 2)


class Program(NamedTuple):
    """The compiled parts of a method.

    Attributes:
        begin: `begin(params, seed, rate, scale, updates)`, what `advance` goes on from.
        advance: `advance(carry, rows, rate, scale, updates)`, a block of updates.
        batches: that an update takes.
    """

    begin: Callable[..., Any]
    advance: Callable[..., Any]
    batches: int


class Setting(NamedTuple):
    """What every run needs; `train` are all training images, whatever is held out."""

    config: Config
    sizes: Sizes
    dataset: data.Dataset
    train: tuple[jax.Array, jax.Array]
    widths: tuple[int, ...]


def setting(config: Config) -> Setting:
    """Read the data."""
    dataset = data.load(config.data, config.data_dir)
    sizes = QUICK if config.quick else Sizes()
    train = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    return Setting(config, sizes, dataset, train, dataset.widths(sizes.hidden))


def program(contender: Contender, here: Setting) -> Program:
    """Compiled once for all rates, scales, seeds and numbers of updates."""
    network = models.dense_classifier(here.widths, 0)

    def begin(params: Any, seed: Any, rate: Any, scale: Any, updates: Any) -> Any:
        tx = contender.make(cosine(rate, updates), scale, jax.random.key(seed))
        return params, tx.init(params)

    def advance(
        carry: Any, rows: Any, rate: Any, scale: Any, updates: Any, *train: Any
    ) -> Any:
        # The key of the draws lives in the state: this one is not used.
        tx = contender.make(cosine(rate, updates), scale, jax.random.key(0))
        return descend(tx, network.loss, carry, rows, *train)

    compiled = jax.jit(advance)
    return Program(
        jax.jit(begin), lambda *args: compiled(*args, *here.train), contender.batches
    )


def number_of_updates(batches: int, of: Program, here: Setting) -> int:
    """Whole blocks, one at the least, that take so many batches at the most."""
    block = here.sizes.block
    return max(1, batches // block) * block // of.batches


def in_blocks(rows: np.ndarray, of: Program, here: Setting) -> np.ndarray:
    """Rows of example numbers, a batch each, by program, update and inner batch."""
    inner = (of.batches,) if of.batches > 1 else ()
    return rows.reshape(-1, here.sizes.block // of.batches, *inner, rows.shape[-1])


def trained(
    of: Program,
    here: Setting,
    size: int,
    seed: int,
    updates: int,
    rate: float,
    scale: float,
) -> tuple[Any, float]:
    """Train on the first `size` training images: the parameters, and the seconds."""
    rows = batch_indices(seed, size, updates * of.batches, here.config.batch_size)
    blocks = in_blocks(rows, of, here)
    params = models.dense_classifier(here.widths, seed).params
    carry = of.begin(params, seed, rate, scale, updates)
    began = time.perf_counter()
    for some in blocks:
        carry = jax.block_until_ready(of.advance(carry, some, rate, scale, updates))
    return carry[0], time.perf_counter() - began


def seconds_per_update(
    programs: Mapping[str, Program], here: Setting
) -> dict[str, float]:
    """Medians of rounds in which all take turns, a block each, at rate 0."""
    params = models.dense_classifier(here.widths, 0).params
    block, size = here.sizes.block, len(here.dataset.train_labels)
    rows = batch_indices(0, size, block, here.config.batch_size)
    spent = {name: [] for name in programs}
    for _ in range(ROUNDS + 1):
        for name, of in programs.items():
            (some,) = in_blocks(rows, of, here)
            carry = of.begin(params, 0, 0.0, 0.01, 1)
            began = time.perf_counter()
            jax.block_until_ready(of.advance(carry, some, 0.0, 0.01, 1))
            spent[name].append((time.perf_counter() - began) * of.batches / block)
    # The first round compiles.
    return {name: float(np.median(of[1:])) for name, of in spent.items()}
