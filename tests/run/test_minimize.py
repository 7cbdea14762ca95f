"""A whole run in one call: what a hand-written loop gives, batches, callbacks."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.runs import (
    BATCHES,
    CHAIN,
    FEW,
    KEY,
    QUICK,
    SCHEDULE,
    SLOW,
    X,
    assert_close,
    assert_same,
    bowl,
    loss,
    minimize,
)

import lejax
from lejax._run import batches


def by_hand(tx, batches, params=X):
    """All parameters and infos of an ordinary loop over an optax chain."""

    def body(carry, batch):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
        moved = optax.apply_updates(params, updates)
        return (moved, state), (params, state[0].info)

    run = jax.jit(lambda carry: jax.lax.scan(body, carry, batches)[1])
    return run((params, tx.init(params)))


BY_HAND = {
    "the paper's rate": (
        {"sampler": CHAIN, "tau": 0.2, "beta": 2.0},
        lambda: (lejax.local_entropy(CHAIN, 0.2, key=KEY, beta=2.0), optax.sgd(0.4)),
    ),
    "its schedule": (
        {"sampler": FEW, "tau": SCHEDULE, "beta": 2.0},
        lambda: (
            lejax.local_entropy(FEW, SCHEDULE, key=KEY, beta=2.0),
            optax.sgd(lambda k: 2 * SCHEDULE(k)),
        ),
    ),
    "heat": (
        {"sampler": QUICK, "tau": 0.2},
        lambda: (lejax.heat(QUICK, 0.2, key=KEY), optax.sgd(0.2)),
    ),
    "momentum behind": (
        {"sampler": QUICK, "tau": 0.2, "optimizer": SLOW},
        lambda: (lejax.heat(QUICK, 0.2, key=KEY), SLOW),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_it_is_the_loop_over_an_optax_chain(name):
    options, chain = BY_HAND[name]
    result = lejax.minimize(
        loss, X, key=KEY, batches=iter(BATCHES), block_size=4, **options
    )
    # One estimate more than updates: that of the parameters that are returned.
    again = np.append(BATCHES, BATCHES[-1:], 0)
    params, infos = by_hand(optax.chain(*chain()), again)
    assert_close(result.params, jax.tree.map(lambda leaf: leaf[-1], params))
    assert_close(result.history.objective, infos.objective)
    assert_close(result.objective, infos.objective[-1])
    assert_close(result.standard_error, infos.standard_error[-1])
    assert_close(result.effective_sample_size, infos.effective_sample_size.mean())
    assert result.num_evaluations == infos.num_evaluations.sum()
    assert (result.reason, result.num_updates) == ("batches", 7)
    assert result.nonfinite_fraction == 0


@pytest.mark.parametrize(
    "options", [{"target_value": 0.9}, {"patience": 3, "num_updates": 40}]
)
def test_the_size_of_a_block_makes_no_difference(options):
    one, other = (minimize(block_size=size, **options) for size in (1, 5))
    assert_same(one, other)
    assert one.message == other.message


def test_one_batch_for_all_updates():
    """Arrays and other things: what a loss must know at compile time stays known."""
    batch = {"rows": BATCHES[0], "times": 2, "name": "train", "none": None}

    def named(params, batch):
        assert (batch["times"], batch["name"]) == (2, "train")
        return loss(params, jnp.tile(batch["rows"], (batch["times"], 1)))

    found = minimize(named, X, batch=batch, num_updates=3)
    same = minimize(loss, X, batches=[np.tile(BATCHES[0], (2, 1))] * 3, num_updates=3)
    assert_close(found.params, same.params)
    assert (found.reason, same.reason) == ("num_updates", "num_updates")


def test_batches_of_other_shapes_are_used(monkeypatch):
    """The last of an epoch; a block begins with each other shape, and pads itself."""
    ragged = [*BATCHES[:4], BATCHES[4, :1], *BATCHES[5:], BATCHES[0, :1]]
    with pytest.warns(
        UserWarning, match=r"batches have other shapes .*\(1, 2\)"
    ) as told:
        result = minimize(loss, X, batches=ragged, block_size=3, num_updates=100)
    assert len(told) == 1
    assert (result.num_updates, result.reason) == (8, "batches")
    tx = optax.chain(lejax.heat(QUICK, 0.5, key=KEY), optax.sgd(0.5))
    params, state = X, tx.init(X)
    update = jax.jit(
        lambda state, params, batch: tx.update(
            None, state, params, value_fn=loss, batch=batch
        )
    )
    for batch in ragged:
        updates, state = update(state, params, batch)
        params = optax.apply_updates(params, updates)
    assert_close(result.params, params)
    # Large batches: fewer in a stack.
    steps = []
    monkeypatch.setattr(batches, "STACKED_BYTES", 2 * BATCHES[0].nbytes + 1)
    minimize(
        loss,
        X,
        batches=BATCHES,
        block_size=3,
        callback=lambda step, *_: steps.append(step),
    )
    assert steps == [2, 4, 6, 7]


def test_batches_are_read_a_block_ahead_and_no_further():
    source = iter(itertools.cycle(range(1000)))

    def value_fn(x, batch):
        return bowl(x) + batch["number"].astype(x.dtype) + batch["drop"].sum()

    given = (
        {"number": number, "drop": jnp.zeros(1)} for number in source
    )  # a Python number, and an array of the device
    x = jnp.zeros(2)
    result = minimize(value_fn, x, batches=given, num_updates=5, block_size=2)
    assert next(source) == 5
    # Each update had its own, and the last estimate the last one.
    steps = np.diff(result.history.objective)
    np.testing.assert_allclose(steps, [1, 1, 1, 1, 0], atol=0.5)
    minimize(value_fn, batches=given, target_value=1e3, block_size=4)
    assert next(source) == 10


def test_keys_among_the_batches():
    def noisy(x, key):
        return bowl(x + jax.random.normal(key, x.shape))

    result = minimize(noisy, batches=jax.random.split(KEY, 3))
    assert result.num_updates == 3


def test_nothing_is_compiled_twice():
    traces = []

    def counted(x, batch):
        traces.append(1)
        return bowl(x - batch)

    minimize(counted, batches=np.zeros((3, 2), np.float32), block_size=3)
    first = len(traces)
    traces.clear()
    minimize(counted, batches=np.zeros((10, 2), np.float32), block_size=3)
    assert len(traces) == first
    minimize(counted, 3.0, batch=jnp.ones(()), block_size=5)
    assert len(traces) == 2 * first


def test_callback():
    """After every block; what it gets it may keep, and what is true stops the run."""
    seen = []
    result = minimize(block_size=5, callback=lambda *args: seen.append(args))
    assert [step for step, _, _ in seen] == [5, 10, 12]
    assert_close(seen[0][1], minimize(num_updates=5).params)
    objectives = [info.objective for _, _, info in seen]
    np.testing.assert_array_equal(objectives, result.history.objective[[4, 9, 11]])
    stopped = minimize(block_size=5, callback=lambda step, x, _: jnp.sum(x) < 10)
    assert (stopped.reason, stopped.num_updates) == ("callback", 5)
    assert len(stopped.history.objective) == 6
    assert_close(stopped.params, seen[0][1])
    # By default a hundredth of the updates, 100 at most.
    for num_updates, steps in ((300, [3, 6]), (50_000, [100, 200])):
        seen = []

        def keep(step, *_):
            seen.append(step)  # noqa: B023
            return len(seen) == 2  # noqa: B023

        minimize(num_updates=num_updates, callback=keep)
        assert seen == steps


def test_the_callers_parameters_stay_whole():
    x = jnp.ones(2)
    minimize(params=x, sampler=lejax.sgld(3, 0.1))
    assert_close(x, np.ones(2))


def test_aux_is_left_out():
    pair = minimize(lambda x: (bowl(x), {"aux": x}), has_aux=True)
    alone = minimize()
    assert_close(pair.params, alone.params)
    assert pair.num_evaluations == alone.num_evaluations


class Bar:
    """What is used of tqdm's."""

    made: list

    def __init__(self, total, unit, desc):
        self.total, self.unit, self.n, self.open = total, unit, 0, True
        self.texts, self.descriptions, self.resets = [], [desc], 0
        Bar.made.append(self)

    def reset(self):
        self.resets += 1

    def set_description(self, text):
        self.descriptions.append(text)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.open = False

    def update(self, n):
        self.n += n

    def set_postfix_str(self, text, refresh):
        self.texts.append(text)


@pytest.fixture
def bars(monkeypatch):
    Bar.made = []
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    return Bar.made


def test_progress_bar(bars):
    result = minimize(progress=True, block_size=5)
    (bar,) = bars
    assert (bar.total, bar.unit, bar.n, bar.open) == (12, "update", 12, False)
    assert len(bar.texts) == 3
    # Time to compile is shown as such, and not in the time that is left.
    assert bar.descriptions[0] == "compiling"
    assert re.fullmatch(r"compiled in \d+\.\d s", bar.descriptions[1])
    assert bar.resets == 1
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", bar.texts[0])
    assert float(bar.texts[0].split()[0]) == pytest.approx(
        result.history.objective[4], rel=1e-3
    )
    with pytest.raises(ZeroDivisionError):
        minimize(progress=True, callback=lambda *_: 1 / 0)
    assert not bars[1].open


def test_progress_bar_where_somebody_looks(bars, monkeypatch):
    minimize(num_updates=1)
    assert not bars
    shell = types.SimpleNamespace(kernel=None)
    notebook = types.SimpleNamespace(get_ipython=lambda: shell)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "IPython", notebook)
        minimize(num_updates=1)
    assert bars.pop()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    minimize(num_updates=1, progress=False)
    assert not bars
    minimize(num_updates=1)
    assert len(bars) == 1
    monkeypatch.setattr(sys, "stderr", None)
    minimize(num_updates=1)
    assert len(bars) == 1


def test_progress_bar_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    minimize(num_updates=1)
    with pytest.raises(ImportError, match=r"progress=True needs tqdm.*pip install"):
        minimize(progress=True)


def test_summary():
    result = minimize()._replace(
        objective=1.23456,
        standard_error=0.0123,
        num_evaluations=3_000_000_000,
        seconds=2.34,
        effective_sample_size=31.4,
        signal=0.873,
        certified=0.5,
    )
    assert str(result).splitlines() == [
        "objective    1.235 ± 0.01",
        "updates      12, stopped by num_updates",
        "evaluations  3,000,000,000 in 2.3 s",
        "effective    31 samples in an update",
        "failed       0.0% of the samples",
        "signal       87% of the steps",
        "certified    50% of the updates",
    ]
    assert repr(result) == str(result)
    assert repr(result.history).startswith("History of 13 estimates: objective, st")
    ended = result._replace(reason="interrupted")
    assert "12, then interrupted" in repr(ended)
    cell = result._repr_html_()
    assert "<td style='text-align:left'>1.235 ± 0.01</td>" in cell
    assert cell.count("<tr>") == 7
    assert (result.fun, result.nfev) == (1.23456, 3_000_000_000)
    assert result.x is result.params
    nan = float("nan")
    unknown = result._replace(objective=nan, standard_error=nan)
    unknown = unknown._replace(effective_sample_size=nan)
    assert str(unknown).count("not estimated") == 2
    assert "1.235\n" in str(result._replace(standard_error=nan))


@pytest.mark.parametrize(
    ("options", "success", "message"),
    [
        ({}, True, "All updates were made after 12 updates."),
        ({"batches": np.zeros(3)}, True, "No batch is left after 3 updates."),
        ({"target_value": 0.9}, True, r"The objective reached target_value after \d"),
        ({"target_value": -9.0}, False, "All .*; target_value did not end it earlier"),
        ({"patience": 3, "num_updates": 99}, True, "The objective stopped falling aft"),
        ({"callback": lambda *_: True}, True, "The callback stopped the run after"),
    ],
)
def test_success_and_message(options, success, message):
    value_fn = bowl if "batches" not in options else lambda x, batch: bowl(x - batch)
    with jax.numpy_dtype_promotion("standard"):
        result = minimize(value_fn, **options)
    assert result.success is success
    assert re.match(message, result.message)


def test_seconds_and_evaluations_of_a_long_run():
    """More than 32 bits hold."""

    class Many(type(QUICK)):
        def run(self, *args, **options):
            displacement, state, info, learnt = super().run(*args, **options)
            many = info._replace(num_evaluations=jnp.array(2**31 - 1, jnp.int32))
            return displacement, state, many, learnt

    settings = {f.name: getattr(QUICK, f.name) for f in dataclasses.fields(QUICK)}
    result = minimize(sampler=Many(**settings), num_updates=3)
    assert result.num_evaluations == 4 * (2**31 - 1)
    assert 0 < result.seconds < 100


def test_in_debugging_modes():
    with jax.debug_nans(True):
        result = minimize(sampler=lejax.pathwise(2), patience=3, target_value=0.6)
        assert result.reason == "target_value"
        assert np.isnan(result.standard_error)
        minimize(sampler=lejax.sgld(4, 0.1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        result = minimize(params=jnp.ones(2, dtype), patience=3, target_value=-1.0)
        assert result.params.dtype == dtype
        assert np.isfinite(result.objective)
