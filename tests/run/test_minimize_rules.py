"""What stops a run of `minimize`, what it warns of, and what it refuses."""

from __future__ import annotations

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import runs
from cases.runs import BATCHES, FEW, MANY, X, assert_close, bowl, loss, minimize

import lejax


def somewhere(x):
    """Finite on a quarter of the draws around `NEAR`."""
    return jnp.where(jnp.all(x > 2), bowl(x), jnp.nan)


NEAR = 2.05 * jnp.ones(2)


def fails_on_zero(x, batch):
    return jnp.where(batch > 0, bowl(x), jnp.nan)


def bottomless(x):
    """On half of the draws; nothing can be estimated then, though few have failed."""
    return jnp.where(jnp.sum(x) > 2, -jnp.inf, bowl(x))


def nowhere(x):
    return jnp.sum(x) * jnp.nan


def test_target_value():
    """The first parameters whose estimate is below it by its error are returned."""
    target = 0.9
    free = minimize()
    sure = free.history.objective + free.history.standard_error
    first = int(np.argmax(sure <= target))
    assert 0 < first < 12
    assert free.history.objective[first - 1] > target - 0.5
    result = minimize(target_value=target)
    assert (result.reason, result.num_updates) == ("target_value", first)
    assert result.objective == free.history.objective[first]
    assert_close(result.params, minimize(num_updates=first).params)
    assert len(result.history.objective) == first + 1
    # Not by the objective alone, where its error is known.
    between = float(sure[first] - free.history.standard_error[first] / 2)
    assert minimize(target_value=between).num_updates > first
    at_once = minimize(target_value=1e3)
    assert (at_once.num_updates, at_once.reason) == (0, "target_value")
    assert_close(at_once.params, jnp.ones(2))


def test_target_value_without_an_error():
    """A single pair has none; the objective alone decides."""
    result = minimize(sampler=lejax.pathwise(2), target_value=0.6)
    assert np.isnan(result.history.standard_error).all()
    assert result.reason == "target_value"
    assert result.objective <= 0.6


def test_target_value_may_be_reached_by_the_last_update():
    free = minimize(num_updates=1)
    target = float(free.objective + 2 * free.standard_error)
    assert free.history.objective[0] > target
    result = minimize(num_updates=1, target_value=target)
    assert (result.reason, result.num_updates) == ("target_value", 1)


def stale_after(objective, patience):
    """The rule, written plainly: at which estimate the run stops."""
    best, stale = np.inf, 0
    for k in range(patience - 1, len(objective)):
        window = objective[k + 1 - patience : k + 1].astype(float)
        if window.mean() < best - window.std(ddof=1) / patience**0.5:
            best, stale = window.mean(), 0
        else:
            stale += 1
        if stale == patience:
            return k
    return None


@pytest.mark.parametrize("patience", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_patience(patience):
    options = {"params": 2 * jnp.ones(2), "num_updates": 60}
    free = minimize(**options)
    expected = stale_after(free.history.objective, patience)
    assert 2 * patience <= expected < 60
    result = minimize(**options, patience=patience)
    assert (result.reason, result.num_updates) == ("patience", expected)
    # While it falls, nothing stops it.
    options["params"] *= 5
    falling = minimize(**options, patience=patience, optimizer=optax.sgd(0.02))
    assert falling.reason == "num_updates"


def test_patience_counts_from_a_full_window():
    """Also where the first objectives are no numbers."""
    batches = np.array([0, 0, 0, *[1] * 9], np.float32)
    free = minimize(fails_on_zero, batches=batches)
    expected = stale_after(free.history.objective, 3)
    assert expected == 4
    with pytest.warns(UserWarning, match="60% of the samples failed"):
        result = minimize(fails_on_zero, batches=batches, patience=3)
    assert (result.reason, result.num_updates) == ("patience", expected)


# Pairs see no noise in a bowl, at its minimum.
PLAIN = lejax.importance(40, antithetic=False)
STILL = {"params": jnp.zeros(2), "optimizer": optax.sgd(1e-3), "num_updates": 200}
WARNINGS = {
    "few are effective": (
        r"[\d.]+ samples were effective.*raise num_samples of importance, or lower bet",
        {"sampler": FEW, "beta": 100.0, "num_updates": 2},
    ),
    "many failed": (
        r"\d\d% of the samples failed.*lower tau",
        {"value_fn": somewhere, "sampler": MANY, "num_updates": 3, "params": NEAR},
    ),
    "many steps failed": (
        r"\d+% of the samples failed.*step size of a chain",
        {"value_fn": somewhere, "sampler": lejax.sgld(20, 0.5), "params": NEAR},
    ),
    "mostly noise": (
        r"mostly noise \(\d+% signal\).*raise num_samples of importance.*rate",
        {"sampler": PLAIN, **STILL},
    ),
    "mostly noise, and beta is small": (
        r"\d+ of 40 samples were effective.*raise beta, to about \d+.*beta_share=0.5",
        {
            "value_fn": lambda x: bowl(x) + jnp.sum(x) * 1e-3,
            "sampler": PLAIN,
            "beta": 0.05,
            **STILL,
        },
    ),
    "beta is small for an error count": (
        r"\d+ of 1,000 samples were effective.*raise beta",
        {
            "value_fn": lambda x: jnp.mean((x > 0).astype(jnp.float32)) / 10,
            "sampler": lejax.importance(1000, **runs.WHOLE),
        },
    ),
    "heat without an optimizer": (
        r"the objective fell steadily until the end.*optimizer=optax\.adam\(1e-2\)",
        {"tau": 1e-3, "params": jnp.full(2, 9.0), "num_updates": 60},
    ),
    "an optimizer that climbs": (
        r"every update went up the gradient.*optax\.scale\(-learning_rate\)",
        {"optimizer": optax.scale(0.1), "params": jnp.full(2, 0.1)},
    ),
    "nothing is effective": (
        r"no sample of importance was effective in the last 3 estimates.*lower tau",
        {"value_fn": nowhere, "sampler": FEW, "num_updates": 2},
    ),
    "a loss is -inf": (
        r"no sample of importance was effective in the last 3 estimates",
        {"value_fn": bottomless, "sampler": FEW, "num_updates": 2, "target_value": 0},
    ),
    "no draw is finite": (
        r"no sample of pathwise was effective",
        {"value_fn": nowhere, "sampler": lejax.pathwise(2), "num_updates": 2},
    ),
    "no step is finite": (
        r"no sample of sgld was effective",
        {"value_fn": nowhere, "sampler": lejax.sgld(3, 0.1), "num_updates": 2},
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_each_warning_once(name):
    message, options = WARNINGS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = minimize(**options)
    assert result.reason == "num_updates"
    (warning,) = caught
    assert warning.category is UserWarning
    assert re.search(message, str(warning.message))
    assert warning.filename == runs.__file__  # where minimize was called


@pytest.mark.parametrize(
    "sampler",
    [
        FEW,
        lejax.sgld(5, 0.1),
        lejax.pathwise(1),
        lejax.robbins_monro(2, 2, 0.5),
        lejax.score_function(20),
        lejax.importance_by_example(40),
    ],
    ids=lambda sampler: sampler.name,
)
def test_no_warning_without_reason(sampler):
    """Fields that a sampler cannot estimate say nothing; warnings are errors here."""
    start = jax.tree.map(lambda leaf: 2 * leaf, X)
    minimize(loss, start, sampler=sampler, tau=0.1, batch=BATCHES[0], num_updates=20)


def test_a_run_that_falls_is_no_reason():
    """Its signal is low in each update, and the objective falls all the same."""
    options = {"optimizer": optax.sgd(0.005), "num_updates": 600, "tau": 0.1}
    x = jnp.ones(200)
    result = minimize(params=x, sampler=PLAIN, beta=0.1, **options)
    assert result.signal < 0.1
    assert bowl(result.params) < 0.5 * bowl(x)


def test_noise_that_averages_out_is_no_reason():
    """The fall is as large as the error of one estimate, in 200 of them."""
    result = minimize(optimizer=optax.sgd(5e-4), num_updates=200)
    fall = bowl(jnp.ones(2)) - bowl(result.params)
    assert 0.5 < fall / np.mean(result.history.standard_error) < 2


def test_a_run_that_has_arrived_is_no_reason():
    """Though most of its steps are noise, from then on."""
    options = {"optimizer": optax.sgd(0.2), "num_updates": 200}
    result = minimize(params=jnp.full(2, 3.0), sampler=PLAIN, **options)
    assert np.median(result.history.signal[50:]) < 0.5 < result.signal


def test_the_share_of_certified_updates():
    """All are, far from the minimum; at it not, and samplers without noise say no."""
    far = minimize(params=jnp.full(2, 3.0), sampler=MANY, num_updates=3, tau=0.1)
    assert far.certified == 1
    assert "100% of the updates" in str(far)
    with pytest.warns(UserWarning, match="mostly noise"):
        history = minimize(sampler=PLAIN, **STILL).history
    assert set(history.certified) == {0, 1}
    assert history.certified.mean() < 0.2
    for sampler in (lejax.sgld(5, 0.1), lejax.pathwise(2)):
        result = minimize(sampler=sampler)
        assert np.isnan(result.certified)
        assert "certified    not estimated" in str(result)


def test_a_run_that_fails_stops():
    """After ten estimates in a row that moved nothing, and not before."""
    good = np.array([1, 0, 1] + [0] * 9 + [1] + [0] * 20, np.float32)
    with pytest.warns(UserWarning, match="in the last 10 estimates, so nothing moved"):
        result = minimize(fails_on_zero, batches=good, num_updates=100, block_size=4)
    assert (result.reason, result.num_updates) == ("failed samples", 22)
    assert not result.success
    assert "No sample was effective" in result.message
    assert np.isfinite(result.params).all()
    with pytest.warns(UserWarning, match="no sample of sgld was effective in the last"):
        result = minimize(nowhere, sampler=lejax.sgld(3, 0.1))
    assert (result.reason, result.num_updates) == ("failed samples", 9)


@pytest.mark.parametrize("rule", [{"target_value": 0.0}, {"patience": 3}])
def test_rules_that_nothing_can_tell(rule):
    with pytest.raises(ValueError, match=r"go by the objective, which sgld does not"):
        minimize(sampler=lejax.parallel(lejax.sgld(3, 0.1)), **rule)


BAD = [
    ({"num_updates": 0}, ValueError, "num_updates must be an integer of at least 1"),
    ({"num_updates": 2.5}, ValueError, "num_updates must be an integer"),
    ({"block_size": 0}, ValueError, "block_size must be an integer"),
    ({"patience": 1}, ValueError, "patience must be an integer of at least 2, got 1"),
    ({"target_value": jnp.nan}, ValueError, "target_value must be a finite number.*="),
    ({"target_value": "low"}, ValueError, "target_value must be a finite number"),
    ({"callback": 3}, TypeError, r"callback must be a function .*got 3; pass"),
    ({"progress": "bar"}, ValueError, "progress must be True, False or None, got 'bar"),
    ({"optimizer": 0.1}, TypeError, r"optimizer must be an optax.*got 0.1.*optax\.ad"),
    ({"batch": X, "batches": [X]}, ValueError, "batch and batches are both given"),
    ({"batches": 3}, TypeError, "batches must be an iterable of batches, got 3; pass"),
    ({"batches": []}, ValueError, "batches gave no batch; pass an iterable of one"),
    ({"batches": {"x": X}}, TypeError, "batches must give trees of arrays.*got 'x'"),
    ({"sampler": lejax.importance}, TypeError, "sampler must be a lejax sampler"),
    ({"sampler": lejax.pathwise(2), "beta": 2.0}, ValueError, "beta must be 1 for pa"),
    (
        {"sampler": FEW, "beta": -1.0},
        ValueError,
        "beta must be a positive finite number",
    ),
    ({"tau": 0.0}, ValueError, "tau must be a positive finite number"),
    ({"tau": lambda k: -1.0}, ValueError, r"tau\(0\) must be a positive finite number"),
    ({"key": 0}, TypeError, "key must be a typed key"),
    ({"value_fn": 3.0}, TypeError, "value_fn must be a function"),
    ({"value_fn": lambda x: x}, TypeError, "must return a scalar loss"),
    ({"has_aux": True}, TypeError, r"must return a pair \(loss, aux\) with has_aux"),
    ({"params": {"n": jnp.ones(2, int)}}, ValueError, r"params\['n'\] has dtype"),
    ({"sampler": lejax.sgld(3, 2.0)}, ValueError, "step_size starts at 2"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        minimize(**options)


def test_it_cannot_be_traced():
    with pytest.raises(TypeError, match=r"minimize compiles .*outside jax\.jit"):
        jax.jit(lambda x: minimize(params=x).params)(jnp.ones(2))
