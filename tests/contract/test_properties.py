"""Whatever the loss does: parameters stay finite, the info is truthful.

Each program is compiled once; values, seeds, τ, β and the way in which the loss fails
are its inputs, which hypothesis makes up.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import lejax

J = 12
SAMPLERS = {
    "importance": lambda **chunk: lejax.importance(J, **chunk),
    "importance, plain with credit": lambda **chunk: lejax.importance(
        J, antithetic=False, credit=True, **chunk
    ),
    "importance, no credit": lambda **chunk: lejax.importance(J, credit=False, **chunk),
    "importance, plain": lambda **chunk: lejax.importance(J, antithetic=False, **chunk),
    "importance, shared": lambda **chunk: lejax.importance(
        J, signs_per_draw=3, **chunk
    ),
    "score_function": lambda **chunk: lejax.score_function(J, **chunk),
    "score_function, no credit": lambda **chunk: lejax.score_function(
        J, credit=False, **chunk
    ),
    "pathwise": lambda **chunk: lejax.pathwise(J, **chunk),
    "robbins_monro": lambda **chunk: lejax.robbins_monro(3, 4, 0.5),
    "sgld": lambda **chunk: lejax.sgld(J, 0.01, warm_start=True),
    "sgld, averaged": lambda **chunk: lejax.sgld(
        J // 2, 0.01, num_chains=2, averaging=0.5
    ),
}
CREDITED = {
    "importance",
    "importance, plain with credit",
    "importance, shared",
    "score_function",
}
LAYOUTS = {
    "vector": ({"x": ((3,), "float32")}, None),
    "half": ({"a": ((2, 3), "bfloat16"), "b": ((), "bfloat16")}, 2),
    "half, narrow": ({"x": ((4,), "float16")}, 4),
    "mixed": ({"w": ((5, 2), "float32"), "b": ((2,), "bfloat16")}, 5),
    "examples": ({"bias": ((2,), "float32"), "kernel": ((5, 2), "float32")}, 4),
    "double": ({"a": ((2,), "float64"), "b": ((1, 1), "float64")}, None),
}
ROWS = np.array([[1.0, 0.0, -2.0, 0.5, 1.5], [0.0, 3.0, 0.5, -1.0, 1.0]])


class Failure(NamedTuple):
    """Where `share` says so the loss is `special`; else it is a function of x."""

    share: float
    special: float
    scale: float
    offset: float
    rounded: bool


def loss(params, failure):
    dtype = failure.scale.dtype
    wide = {name: leaf.astype(dtype) for name, leaf in params.items()}
    if "w" in wide:
        wide["w"] = jnp.asarray(ROWS, dtype) @ wide["w"]
    if "kernel" in wide:  # a mean over examples, of which each may fail
        rows = jnp.asarray(ROWS, dtype) @ wide["kernel"] + wide["bias"]
        total = jnp.sum(jnp.sin(rows) + rows / 2, -1)
    else:
        total = sum(jnp.sum(jnp.sin(leaf) + leaf / 2) for leaf in wide.values())
    value = jnp.where(failure.rounded, jnp.round(total), total)
    fails = (jnp.mod(total, 1) < failure.share) | (failure.share >= 1)
    regular = failure.scale * value + failure.offset
    return jnp.mean(jnp.where(fails, failure.special, regular))


@functools.cache
def program(name, layout):
    """Two updates, of parameters, a seed, τ, β and a failure; and what they tell."""
    chunk = LAYOUTS[layout][1]
    sampler = SAMPLERS[name](**({} if chunk is None else {"chunk_size": chunk}))
    heat = sampler.regularization == "heat"

    @jax.jit
    def run(params, seed, tau, beta, failure):
        key = jax.random.key(seed)
        if heat:
            tx = lejax.heat(sampler, tau, key=key)
        else:
            tx = lejax.local_entropy(sampler, tau, key=key, beta=beta)
        state, infos, trail = tx.init(params), [], []
        for _ in range(2):
            grads, state = tx.update(None, state, params, value_fn=loss, batch=failure)
            infos.append(state.info)
            trail.append((grads, state.sampler))
            params = jax.tree.map(lambda p, g: p / 2 - g / 1000, params, grads)
        return infos, trail

    return run


NUMBERS = st.one_of(
    st.floats(-3, 3, allow_subnormal=False),
    st.sampled_from([0.0, -0.0, 1e-6, -1e2, 1e4, 1e30, -1e37]),
)
SPECIAL = [np.nan, np.inf, -np.inf, 1e38, -1e38, -0.0, 7.0]
FAILURES = st.builds(
    Failure,
    share=st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0]),
    special=st.sampled_from(SPECIAL),
    scale=st.sampled_from([0.0, -0.0, 1e-30, 1.0, -1.0, 1e4, 1e38]),
    offset=st.sampled_from([0.0, -0.0, -1.0, 1e6, 1e38, -1e38]),
    rounded=st.booleans(),
)
POWERS = st.integers(-8, 4).map(lambda power: 10.0**power)


STEEP = {"beta": 1e-4, "tau": 1e-8, "failure": Failure(0.0, 0.0, 1e30, 0.0, False)}


def with_corners(test):
    """What sixty examples may miss: each value everywhere and in places, overflow."""
    ordinary = {"numbers": list(np.linspace(-2, 2, 12)), "seed": 3, "beta": 1.0}
    for share in (0.5, 1.0):
        for special in SPECIAL:
            failure = Failure(share, special, 1.0, 0.0, False)
            test = hypothesis.example(**ordinary, tau=0.1, failure=failure)(test)
    return hypothesis.example(**(ordinary | STEEP))(test)


def _case(number, name, layout):
    """By default every sampler and every layout, `importance` with all of them."""
    by_default = name == "importance" or number % len(LAYOUTS) == list(LAYOUTS).index(
        layout
    )
    return pytest.param(name, layout, marks=[] if by_default else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        _case(number, name, layout)
        for number, name in enumerate(SAMPLERS)
        for layout in LAYOUTS
    ],
)
@with_corners
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    numbers=st.lists(NUMBERS, min_size=12, max_size=12),
    seed=st.integers(0, 2**31 - 1),
    tau=POWERS,
    beta=POWERS,
    failure=FAILURES,
)
def test_nothing_is_lost(name, layout, numbers, seed, tau, beta, failure):
    with jax.enable_x64(layout == "double"):
        wide = jnp.float64 if layout == "double" else jnp.float32
        params, left = {}, list(numbers)
        for leaf, (shape, dtype) in LAYOUTS[layout][0].items():
            size = int(np.prod(shape))
            values, left = left[:size], left[size:]
            limit = float(jnp.finfo(dtype).max) / 2  # samples go beyond
            params[leaf] = jnp.asarray(np.clip(values, -limit, limit), dtype).reshape(
                shape
            )
        given_failure = Failure(
            *(jnp.asarray(x, wide) for x in failure[:-1]), jnp.asarray(failure.rounded)
        )
        infos, trail = program(name, layout)(
            params, seed, jnp.asarray(tau, wide), jnp.asarray(beta, wide), given_failure
        )
        for info, (updates, kept) in zip(infos, trail, strict=True):
            for leaf in jax.tree.leaves((updates, kept)):
                assert jnp.isfinite(leaf).all()
            assert_truthful(name, layout, numbers, tau, beta, failure, info, updates)


def assert_truthful(name, layout, numbers, tau, beta, failure, info, updates):
    info = jax.tree.map(float, info)
    # Credit takes one more, at x, where it finds the examples.
    assert info.num_evaluations == J + (name in CREDITED and layout == "examples")
    assert 0 <= info.nonfinite_fraction <= 1
    assert not info.standard_error < 0
    still = all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
    if failure.share == 1 and not np.isfinite(failure.special):
        assert info.nonfinite_fraction == 1
        assert still
        if "sgld" not in name:
            assert not np.isfinite(info.objective)
            assert info.effective_sample_size == 0
    # A chain needs steps below 4τ, and a drift y/τ that is a number.
    stable = "sgld" not in name or (4 * tau > 0.01 and max(map(abs, numbers)) < 1e30)
    if failure.share == 1 and np.isfinite(failure.special) and stable:
        assert info.nonfinite_fraction == 0
    # A gradient that its dtype cannot hold is zero, and said to rest on nothing.
    overflowed = info.effective_sample_size == 0 and still
    if "sgld" in name:  # which knows no more
        assert np.isnan([*info[:2]]).all()
        assert overflowed or np.isnan(info.effective_sample_size)
        return
    assert 0 <= info.effective_sample_size <= J * (1 + 1e-5)
    if failure.share == 1 and abs(failure.special) < 10:
        # A constant loss is its own smoothing, to the rounding of weights near 1.
        rounding = 1e-5 + 1e-5 / beta * ("importance" in name)
        assert info.objective == pytest.approx(failure.special, abs=rounding)
        assert overflowed or info.effective_sample_size == pytest.approx(J)
        if "plain" not in name:
            assert still  # every pair is level


@pytest.mark.parametrize("name", [name for name in SAMPLERS if "sgld" not in name])
def test_a_gradient_that_its_dtype_cannot_hold(name):
    """It is zero, and said to rest on nothing: the loss was finite everywhere."""
    params = {"x": jnp.linspace(-2, 2, 4, dtype=jnp.float16)}
    failure = jax.tree.map(jnp.asarray, STEEP["failure"])
    infos, trail = program(name, "half, narrow")(
        params, 3, jnp.asarray(STEEP["tau"]), jnp.asarray(STEEP["beta"]), failure
    )
    for info, (updates, _) in zip(infos, trail, strict=True):
        assert (updates["x"] == 0).all()
        assert info.effective_sample_size == 0


@functools.cache
def displacement_of(*args, sampler=lejax.importance, **options):
    """A step of a sampler in double precision, compiled."""
    made = sampler(*args, **options)

    @jax.jit
    def run(params, seed, tau, beta, failure):
        key = jax.random.key(seed)
        if sampler is lejax.pathwise:
            key = jax.random.fold_in(key, 0)  # as the first step of Robbins-Monro
        return made.estimate(
            key,
            made.init(params),
            params,
            value_fn=loss,
            batch=failure,
            tau=tau,
            **({"beta": beta} if made.regularization == "local entropy" else {}),
        )[0]

    return run


@pytest.mark.parametrize("kind", ["chunks", "small beta", "first step"])
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    numbers=st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=3, max_size=3),
    seed=st.integers(0, 2**31 - 1),
    tau=st.sampled_from([1e-4, 0.3, 5.0]),
    beta=POWERS,
    failure=FAILURES,
)
def test_samplers_agree(kind, numbers, seed, tau, beta, failure):
    """On the same draws, also where some of them fail."""
    ordinary = failure._replace(scale=1.0, offset=min(max(failure.offset, -1.0), 1.0))
    if kind == "chunks":
        one = displacement_of(J)
        other = displacement_of(J, chunk_size=4)
    elif kind == "small beta":
        # The weights are 1 - βf to first order. A large loss has no such weight; what
        # heat leaves out of its average has weight 0.
        one = displacement_of(J, signs_per_draw=1)
        other = displacement_of(J, sampler=lejax.score_function)
        ordinary = ordinary._replace(special=7.0)
        beta = 1e-7
    else:
        one = displacement_of(J, sampler=lejax.pathwise)
        other = displacement_of(1, J, 1.0, sampler=lejax.robbins_monro)
    with jax.enable_x64(True):
        arrays = Failure(*map(jnp.asarray, ordinary))
        given = (jnp.asarray(numbers), seed, jnp.asarray(tau), jnp.asarray(beta))
        params = {"x": given[0]}
        found, expected = (
            np.asarray(run(params, *given[1:], arrays)["x"]) for run in (one, other)
        )
        if kind == "small beta":
            found = found / beta
        scale = max(np.abs(expected).max(), np.sqrt(tau))
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)
