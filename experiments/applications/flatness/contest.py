"""The training of the methods: a few programs for all rates, scales and lengths."""

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
    """The settings."""

    data: data.Name = "auto"
    """Data set."""
    data_dir: str | None = None
    """Folder of tensorflow-datasets; by default its own."""
    seeds: int = 5
    """Number of seeds of every method: 0, 1, …"""
    epochs: int = 2
    """Epochs of every method, in the comparison at equal epochs."""
    seconds: float = 10.0
    """Seconds of every method, in the comparison at equal seconds."""
    batch_size: int = 100
    """Training images of a batch."""
    quick: bool = False
    """A run of seconds, as a test that everything works; its results mean nothing."""
    output: Path = Path("results")
    """Folder of the results. Results that exist are not computed again."""


class Sizes(NamedTuple):
    """The sizes that are smaller in a quick run.

    Attributes:
        hidden: the number of hidden units.
        samples: J of the methods without gradients.
        few: the number of gradients of an update of `sgld` and of `robbins_monro`.
        choices: the largest number of rates and of scales that are tried.
        block: the number of batches of a compiled program.
        images: the number of training images on which flatness is measured.
        draws: the number of draws of Hutchinson's trace, and of samples of F_τ.
        products: the number of products of the Hessian with a vector, by Lanczos.
        noises: the number of draws of the noise on the weights.
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
        begin: `begin(params, seed, rate, scale, updates)`, the carry of `advance`.
        advance: `advance(carry, rows, rate, scale, updates)`, a block of updates.
        batches: the number of batches of an update.
    """

    begin: Callable[..., Any]
    advance: Callable[..., Any]
    batches: int


class Setting(NamedTuple):
    """The data and settings of all runs; `train` has all training images."""

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
        # The key of the draws is in the state: this one is not used.
        tx = contender.make(cosine(rate, updates), scale, jax.random.key(0))
        return descend(tx, network.loss, carry, rows, *train)

    compiled = jax.jit(advance)
    return Program(
        jax.jit(begin), lambda *args: compiled(*args, *here.train), contender.batches
    )


def number_of_updates(batches: int, of: Program, here: Setting) -> int:
    """The updates of whole blocks, at least one, with at most this many batches."""
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
    """Train on the first `size` images; returns the parameters and the seconds."""
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
    """Medians over rounds with one block of each method, at rate 0."""
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
