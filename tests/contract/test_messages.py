"""The words of messages, and the modes of JAX, for all that is public."""

from __future__ import annotations

import contextlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.first_steps import IMPORTANCE, KEY, PATHWISE, X, bowl, first, smooth

import lejax

INPUTS, LABELS = jax.random.normal(KEY, (64, 3)), jnp.arange(64) % 2 == 1


def zero_one(w, batch):
    return jnp.mean((batch[0] @ w > 0) != batch[1])


def minimize(value_fn=bowl, **options):
    options = {"tau": 0.1, "key": KEY, "num_updates": 5, **options}
    return lejax.minimize(value_fn, X, **options)


TWO = {"a": X, "b": X}


def partitioned(head):
    tx = optax.partition({"g": head, "z": optax.sgd(0.1)}, {"a": "g", "b": "z"})
    return first(tx, lambda p: bowl(p["a"]), TWO, TWO)


# What is done, and the words in which the mend is.
MESSAGES = {
    "a warm-up from 0": (
        lambda: smooth(tau=lambda step: 0.1 * step.astype(float)),
        r"tau\(0\) must be .* got 0.0; let the schedule begin there, .* with 0.01",
    ),
    "many step sizes": (
        lambda: smooth(lejax.sgld(5, jnp.ones(300))),
        r"step_size must be .* got an array of shape \(300,\); pass",
    ),
    "gaussian in optax.partition": (
        lambda: partitioned(lejax.gaussian(IMPORTANCE, 0.1, key=KEY)),
        "pass mask= to local_entropy, heat or gaussian themselves",
    ),
    "entropy_sgd in optax.partition": (
        lambda: partitioned(lejax.entropy_sgd(0.1, 0.1, key=KEY)),
        "pass mask= to local_entropy, heat or gaussian themselves",
    ),
    "swapped arguments": (
        lambda: minimize(lambda b, w: zero_one(w, b), batch=(INPUTS, LABELS)),
        "arguments are swapped: let the parameters be the first",
    ),
    "swapped arguments that are unpacked": (
        lambda: minimize(
            lambda batch, w: (lambda x, y: zero_one(w, (x, y)))(*batch),
            batch=(INPUTS, LABELS),
        ),
        "arguments are swapped: let the parameters be the first",
    ),
    "a batch as batches": (
        lambda: minimize(zero_one, batches=(INPUTS, LABELS)),
        r"would be 2 batches of different shapes; pass one batch as batch=",
    ),
    "tau without an argument": (
        lambda: smooth(tau=lambda: 0.1),
        "tau must be a number, or a schedule: .* pass for example tau=lambda step",
    ),
    "a loss of NumPy": (
        lambda: minimize(lambda x: float(np.sum(np.asarray(x) ** 2))),
        "write it with jax.numpy, .* jax.pure_callback, or use lejax.ask_tell",
    ),
    "a loss with an if": (
        lambda: minimize(lambda x: x.sum() if x[0] > 0 else x[1]),
        "write it with jax.numpy, .* jax.pure_callback, or use lejax.ask_tell",
    ),
    "a function among the leaves": (
        lambda: first(smooth(), params={"w": X, "f": jnp.tanh}),
        r"params\['f'\] is .* exclude it with mask= of local_entropy, heat or gaussian",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name):
    run, words = MESSAGES[name]
    with pytest.raises((ValueError, TypeError), match=words):
        run()


def test_a_schedule_of_tau_that_ends_at_0():
    with pytest.warns(UserWarning, match="fallen to 0; let its schedule end above it"):
        minimize(tau=optax.linear_schedule(0.1, 0.0, 10), num_updates=50)


def by_update(head):
    def run():
        tx = optax.chain(head(), optax.sgd(0.1))
        return jax.jit(lambda x: first(tx, params=x)[0])(X)

    return run


def by_asking():
    search, x = lejax.ask_tell(smooth()), jnp.full(3, 2.0)
    state = search.init(x)
    for _ in range(2):
        points = search.ask(state, x)
        updates, state = search.tell(points, (points**2).sum(1), state, x)
        x = optax.apply_updates(x, -0.1 * updates)
    return x


STRICTLY = {
    **{
        f"gaussian, {covariance}": by_update(
            lambda covariance=covariance: lejax.gaussian(
                IMPORTANCE, 0.1, key=KEY, covariance=covariance, rank=2
            )
        )
        for covariance in ("scale", "diagonal", "low_rank", "full")
    },
    "gaussian, pathwise": by_update(lambda: lejax.gaussian(PATHWISE, 0.1, key=KEY)),
    "minimize": lambda: minimize(num_updates=3).params,
    "minimize, batches": lambda: (
        minimize(
            zero_one, batches=[(INPUTS, LABELS)] * 3, sampler=IMPORTANCE, beta=20.0
        ).params
    ),
    "ask_tell": by_asking,
}


@pytest.mark.parametrize("name", STRICTLY)
@pytest.mark.parametrize("x64", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_under_the_modes_of_jax(name, x64):
    """Strict and rank promotion, a search for leaked tracers, and double precision."""
    modes = (
        jax.enable_x64(x64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.checking_leaks(),
    )
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        found = np.asarray(STRICTLY[name]())
    assert np.isfinite(found).all()
    assert (found != 0).any()


def test_a_full_covariance_is_saved_and_restored():
    """And goes on bit for bit."""
    tx = lejax.gaussian(IMPORTANCE, 0.1, key=KEY, covariance="full", temperature=1.0)
    update = jax.jit(lambda state, x: tx.update(None, state, x, value_fn=bowl))
    moved, state = update(tx.init(X), X)
    leaves, structure = jax.tree.flatten(state)
    kept = pickle.dumps(
        [
            np.asarray(jax.random.key_data(leaf) if leaf.dtype == KEY.dtype else leaf)
            for leaf in leaves
        ]
    )
    read = [
        jax.random.wrap_key_data(jnp.asarray(x))
        if leaf.dtype == KEY.dtype
        else jnp.asarray(x)
        for x, leaf in zip(pickle.loads(kept), leaves, strict=True)
    ]
    again = structure.unflatten(read)
    for one, other in zip(
        *(jax.tree.leaves(update(s, X - moved)[0]) for s in (state, again)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
