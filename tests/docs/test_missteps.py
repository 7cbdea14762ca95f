"""What first-time users typed: it works, or a message leads on to what does."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lejax

KEY, X = jax.random.key(0), jnp.ones(3)
INPUTS, LABELS = jax.random.normal(KEY, (64, 3)), jnp.arange(64) % 2
IMPORTANCE, PATHWISE = lejax.importance(100), lejax.pathwise(4)


def f(x):
    return x @ x


def zero_one(w, batch):
    return jnp.mean((batch[0] @ w > 0) != batch[1])


def once(tx, value_fn=f, params=X, updates=None):
    return tx.update(updates, tx.init(params), params, value_fn=value_fn)


def entropy(tau=0.1, **options):
    return lejax.local_entropy(IMPORTANCE, tau, key=KEY, **options)


def minimize(value_fn=f, params=X, **options):
    defaults = {"tau": 0.1, "key": KEY, "num_updates": 5}
    return lejax.minimize(value_fn, params, **{**defaults, **options})


DATA = {"batch": (INPUTS, LABELS)}
HEAT = lejax.heat(PATHWISE, 0.1, key=KEY)
WARMUP = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 50)
# What was typed, and what is said: an error, a warning, or nothing because it works.
MISSTEPS = {
    "a chain without a step behind it climbs": (
        lambda: once(optax.chain(entropy())),
        UserWarning,
        r"adding it to the parameters climbs; append .*optax\.sgd\(learning_rate\)",
    ),
    "sgd before the sampler is discarded": (
        lambda: once(optax.chain(optax.sgd(0.1), entropy()), updates=X),
        UserWarning,
        r"replaces the updates that are passed, .*pass None|climbs; append a descent",
    ),
    "clipping before the sampler is discarded": (
        lambda: once(optax.chain(optax.clip(1.0), HEAT, optax.sgd(0.1))),
        UserWarning,
        r"the transformations before it in the chain have no effect; put it first",
    ),
    "two samplers in a chain": (
        lambda: once(optax.chain(HEAT, entropy())),
        ValueError,
        r"two transformations .* keep one, or give them masks",
    ),
    "one sample": (
        lambda: lejax.importance(1),
        ValueError,
        r"num_samples must be an integer of at least 2, got 1; pass for example",
    ),
    "a gradient sampler on a 0-1 loss": (
        lambda: minimize(zero_one, **DATA, sampler=PATHWISE),
        ValueError,
        r"value_fn has no gradient.*use importance or score_function",
    ),
    "a chain on a 0-1 loss": (
        lambda: minimize(zero_one, **DATA, sampler=lejax.sgld(10, 1e-3)),
        ValueError,
        r"value_fn has no gradient.*use importance or score_function",
    ),
    "arguments swapped": (
        lambda: minimize(lambda batch, w: zero_one(w, batch), **DATA),
        TypeError,
        r"arguments are swapped: .*first",
    ),
    "batches=(X, y)": (
        lambda: minimize(zero_one, batches=(INPUTS, LABELS)),
        ValueError,
        r"pass one batch as batch=\(\.\.\.\)",
    ),
    "a NumPy function": (
        lambda: minimize(lambda x: float(np.sum(np.asarray(x) ** 2))),
        TypeError,
        r"jax\.numpy.*pure_callback.*lejax\.ask_tell",
    ),
    "tau without a value": (
        lambda: lejax.minimize(f, X, key=KEY),
        TypeError,
        "missing 1 required keyword-only argument: 'tau'",
    ),
    "tau as lambda: .1": (
        lambda: once(entropy(lambda: 0.1)),
        TypeError,
        r"tau must be a number, or a schedule.*tau=lambda step: 0\.1",
    ),
    "tau falls to 0": (
        lambda: minimize(tau=optax.linear_schedule(0.1, 0.0, 10), num_updates=50),
        UserWarning,
        "tau has fallen to 0; let its schedule end above it",
    ),
    "tau warms up from 0": (
        lambda: once(entropy(WARMUP)),
        ValueError,
        r"tau\(0\) must be a positive finite number.*let the schedule begin",
    ),
    "a mask of words": (
        lambda: once(
            entropy(mask={"a": "yes", "b": False}),
            lambda p: p["a"] @ p["a"],
            {"a": X, "b": X},
        ),
        ValueError,
        r"mask\['a'\] must be True or False, got 'yes'; pass True",
    ),
    "has_aux with a Python number": (
        lambda: once(
            lejax.heat(PATHWISE, 0.1, key=KEY, has_aux={"n": 3}),
            lambda x: (x @ x, {"n": 3}),
        ),
        None,
        None,
    ),
    "an int leaf": (
        lambda: once(HEAT, lambda p: p["w"] @ p["w"], {"w": X, "n": 3}),
        ValueError,
        r"params\['n'\] has dtype int32 .* exclude it with mask=",
    ),
    "gaussian in minimize": (
        lambda: minimize(sampler=lejax.gaussian(IMPORTANCE, 0.1, key=KEY)),
        TypeError,
        r"sampler must be a lejax sampler.*lejax\.importance\(num_samples=1000\)",
    ),
    "a search in one call": (
        lambda: lejax.search(f, bounds=(-X, X), budget=500, key=KEY),
        AttributeError,
        r"has no attribute 'search'; lejax\.search_rule is .*lejax\.ask_tell",
    ),
    "gaussian over raw units": (
        lambda: once(
            lejax.gaussian(IMPORTANCE, 1.0, key=KEY),
            lambda x: jnp.where(jnp.all(jnp.abs(x) < 1e-5), x @ x, jnp.nan),
            X * 1e-6,
        ),
        UserWarning,
        r"no sample .* was effective.*scale the parameters",
    ),
    "the default beta on a mean of mistakes": (
        lambda: minimize(zero_one, **DATA, num_updates=20),
        UserWarning,
        r"of 1,000 samples were effective.*raise beta, to about \d+",
    ),
}


@pytest.mark.standard
@pytest.mark.parametrize("name", MISSTEPS)
def test_it_works_or_a_message_leads_on(name):
    typed, kind, message = MISSTEPS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            typed()
            said = [(type(w.message), str(w.message)) for w in caught]
        except (AttributeError, TypeError, ValueError) as error:
            said = [(type(error), str(error))]
    if kind is None:
        assert said == []
    else:
        assert said[0][0] is kind
        assert re.search(message, said[0][1], re.DOTALL)


@pytest.mark.slow
@pytest.mark.standard
def test_a_researcher(capsys):
    """A Flax CNN with batch norm, written with nothing but the README at hand."""
    runpy.run_path(str(Path(__file__).parent / "first_steps" / "researcher.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "20", "40"]
    assert all("num_evaluations=10" in line for line in lines)
    assert "nan" not in "".join(lines)
