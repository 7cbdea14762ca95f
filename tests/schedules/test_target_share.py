"""τ that follows the share of effective samples, and steps at the paper's rate."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import QUADRATIC, assert_mean
from cases.runs import KEY, assert_close, bowl

import lejax
from lejax._schedules.target_share import current_tau, restrained

SLOPE = np.array([0.8, -0.4, 1.0], np.float32)


def linear(x):
    """ESS/J is exp(-β²τ|slope|²), in closed form and at every x."""
    return x @ jnp.asarray(SLOPE, x.dtype)


def of_linear(share, beta):
    return -np.log(share) / beta**2 / (SLOPE**2).sum()


@functools.cache
def updating(make_tau, value_fn, updates, samples):
    """One program for all the numbers that τ is made of."""
    sampler = lejax.importance(samples)

    @jax.jit
    def run(numbers, params, batch, beta):
        tx = lejax.local_entropy(sampler, make_tau(**numbers), key=KEY, beta=beta)

        def update(state, _):
            grads, state = tx.update(
                None, state, params, value_fn=value_fn, batch=batch
            )
            return state, (grads, state.info)

        return jax.lax.scan(update, tx.init(params), length=updates)[1]

    return run


def infos(
    numbers,
    make_tau=lejax.target_share,
    value_fn=linear,
    params=None,
    batch=None,
    updates=40,
    samples=2000,
    beta=1.0,
):
    """Of updates at parameters that stay where they are."""
    params = jnp.zeros(3) if params is None else params
    run = updating(make_tau, value_fn, updates, samples)
    return run(numbers, params, batch, beta)


@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("decades", [-2, 2])
def test_it_finds_tau_from_two_decades_away(decades, share, beta):
    expected = of_linear(share, beta)
    start = expected * 10.0**decades
    grads, info = infos({"share": share, "init_value": start}, beta=beta)
    np.testing.assert_allclose(info.tau_used[0], start, rtol=1e-6)
    # The share of 2000 samples is an estimate: lognormal weights have long tails.
    np.testing.assert_allclose(info.tau_used[20:], expected, rtol=0.15)
    # What is much too large moves nothing, the rest is the gradient.
    moves = (np.asarray(grads) != 0).all(-1)
    assert moves[7:].all()
    assert moves[0] == (decades < 0)


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_it_finds_the_tau_of_the_quadratic(share):
    """E w = exp(-βF) is known there, for β and for 2β."""
    params = QUADRATIC.params()
    x = QUADRATIC.flat(params)
    _, info = infos(
        {"share": share, "init_value": 1e-3, "gain": 0.2},
        value_fn=QUADRATIC.value_fn,
        params=params,
        updates=60,
        samples=8000,
    )
    found = float(np.exp(np.log(info.tau_used[-20:]).mean()))
    once, twice = (QUADRATIC.free_energy(x, found, beta) for beta in (1.0, 2.0))
    np.testing.assert_allclose(np.exp(2 * (twice - once)), share, rtol=0.03)


@pytest.mark.parametrize("tau", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_the_divergence_bounds_the_step(tau, beta):
    """|E_q[X] - x|² ≤ 2τ log(J/ESS), both in closed form."""
    x = QUADRATIC.flat(QUADRATIC.params())
    step = QUADRATIC.displacement(x, tau, beta)
    once, twice = (QUADRATIC.free_energy(x, tau, b) for b in (beta, 2 * beta))
    assert step @ step <= 2 * tau * 2 * beta * (once - twice)


def by_hand(shares, share, start, gain, max_change, max_ratio):
    """The rule, written plainly."""
    taus = [start]
    for k, found in enumerate(shares[:-1]):
        wanted = -np.log(share(k))
        divergence = -np.log(found) if found > 0 else np.inf
        weight = 1 if divergence > 2 * wanted else max(gain, 1 / (k + 1))
        with np.errstate(divide="ignore"):
            factor = (wanted / np.float64(divergence)) ** weight
        tau = taus[-1] * np.clip(factor, 1 / max_change, max_change)
        taus.append(np.clip(tau, start / max_ratio, start * max_ratio))
    return taus


def rough(x):
    """Of a share that jumps about, with losses that are equal and some that fail."""
    value = jnp.where(x[0] > 0.5, jnp.nan, jnp.floor(3 * jnp.sum(jnp.sin(5 * x))))
    return value


# A first share and its change by an update: that which changes ends beyond what a
# share can be.
SHARES = {"constant": (0.4, 0.0), "rising": (0.2, 0.022), "falling": (0.8, -0.024)}


def scheduled(first, slope, **numbers):
    def share(k):
        return first + slope * jnp.asarray(k, jnp.float32)

    return lejax.target_share(share, **numbers)


@pytest.mark.parametrize("start", [1e-4, 0.1, 30.0])
@pytest.mark.parametrize("value_fn", [linear, rough])
@pytest.mark.parametrize("name", SHARES)
def test_the_rule(name, value_fn, start):
    numbers = {"gain": 0.2, "max_change": 3.0, "max_ratio": 50.0}
    first, slope = SHARES[name]
    given = {"share": first} if name == "constant" else {"first": first, "slope": slope}
    make_tau = lejax.target_share if name == "constant" else scheduled
    grads, info = infos(
        given | numbers | {"init_value": start}, make_tau, value_fn, samples=30
    )

    def share(k):
        return first + slope * k

    assert np.isfinite(grads).all()
    assert np.isfinite(info.tau_used).all()
    found = np.asarray(info.effective_sample_size, np.float64) / 30
    shares = np.asarray(share(np.arange(40)))
    fit = np.flatnonzero((shares > 0.01) & (shares < 0.99))
    found, taus = found[fit], info.tau_used[fit]
    np.testing.assert_allclose(taus, by_hand(found, share, start, **numbers), rtol=2e-3)
    leaps = found < share(fit) ** 2
    still = (np.asarray(grads)[fit] == 0).all(-1)
    # Losses that are all equal move nothing either.
    np.testing.assert_array_equal(still | (found == 1), leaps | (found == 1))


def level(x, value):
    return value + 0 * jnp.sum(x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0])
def test_where_nothing_is_learnt(value):
    """Nothing effective: τ falls; all losses equal: it rises; both within bounds."""
    numbers = {"share": 0.4, "init_value": 0.1, "max_change": 4.0, "max_ratio": 100.0}
    grads, info = infos(numbers, value_fn=level, batch=jnp.float32(value), updates=50)
    assert np.isfinite(grads).all()
    rises = value == 1
    assert info.tau_used[1] == pytest.approx(0.4 if rises else 0.025)
    assert info.tau_used[-1] == pytest.approx(10.0 if rises else 1e-3, rel=1e-4)


@pytest.mark.parametrize("unknown", [np.nan, 0.0])
def test_a_share_that_is_not_known_lowers_tau(unknown):
    """Of a sampler of one's own, say; nothing infinite is made of it on the way."""
    controller = lejax.target_share(0.4, 0.1, max_change=4.0)
    _, info = infos({"tau": 0.1}, lambda tau: tau, updates=1)
    info = jax.tree.map(lambda leaf: leaf[0], info)
    info = info._replace(effective_sample_size=jnp.float32(unknown))
    sampler, one = lejax.importance(10), jnp.ones((), jnp.int32)
    with jax.debug_infs(True):
        found = current_tau(controller, one, info, sampler)
        step = restrained(controller, jnp.ones(3), one, info, sampler)
    np.testing.assert_allclose(found, 0.025, rtol=1e-5)
    np.testing.assert_array_equal(step, 0)


def test_a_failure_is_forgotten():
    """After updates without a sample τ comes back."""

    def loss(x, fails):
        return jnp.where(fails, jnp.nan, linear(x))

    tau = lejax.target_share(0.5, 0.1)
    tx = lejax.local_entropy(lejax.importance(2000), tau, key=KEY)
    x = jnp.zeros(3)

    def update(state, fails):
        _, state = tx.update(None, state, x, value_fn=loss, batch=fails)
        return state, state.info

    fails = (np.arange(100) > 20) & (np.arange(100) < 24)
    _, info = jax.lax.scan(update, tx.init(x), fails)
    assert info.tau_used[24] < 1e-2 * info.tau_used[21]
    np.testing.assert_allclose(info.tau_used[-20:], of_linear(0.5, 1), rtol=0.1)


def test_starts_and_shares_differ_under_vmap():
    def last(share, start):
        numbers = {"share": share, "init_value": start}
        return infos(numbers, updates=10, samples=200)[1].tau_used

    shares, starts = jnp.array([0.3, 0.6]), jnp.array([1e-3, 1e2])
    found = jax.vmap(last)(shares, starts)
    for k in range(2):
        np.testing.assert_allclose(found[k], last(shares[k], starts[k]), rtol=1e-4)


def test_example_by_example():
    """The mean divergence of the examples is controlled as well."""
    sampler = lejax.importance_by_example(400)
    tau = lejax.target_share(0.5, 1e-3)
    tx = lejax.local_entropy(sampler, tau, key=KEY)
    batch, w = jax.random.normal(KEY, (4, 3)), jnp.ones((3, 1))

    def update(state, _):
        _, state = tx.update(
            None, state, w, value_fn=lambda w, x: jnp.mean(x @ w), batch=batch
        )
        return state, state.info

    _, info = jax.lax.scan(update, tx.init(w), length=40)
    # fᵢ = hᵢᵀw: 1/s is the mean of exp(τ|hᵢ|²).
    squares = (np.asarray(batch, np.float64) ** 2).sum(1)
    shares = [
        1 / np.exp(tau * squares).mean() for tau in np.asarray(info.tau_used[-10:])
    ]
    np.testing.assert_allclose(shares, 0.5, rtol=0.1)


SCHEDULE = lejax.scoping(0.5, 0.1)
STEPS = {
    "number": (lejax.local_entropy, lejax.importance(40), 0.3, {"beta": 2.0}),
    "schedule": (lejax.local_entropy, lejax.sgld(5, 0.1), SCHEDULE, {"beta": 2.0}),
    "controller": (
        lejax.local_entropy,
        lejax.importance(40),
        lejax.target_share(0.5, 0.1),
        {},
    ),
    "adapted": (
        lejax.local_entropy,
        lejax.importance(40, beta_share=0.5),
        0.3,
        {"beta": 2.0},
    ),
    "heat": (lejax.heat, lejax.robbins_monro(4, 4, 0.5), SCHEDULE, {}),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_displacement_is_beta_tau_times_the_gradient(name):
    smoothing, sampler, tau, options = STEPS[name]
    x = jnp.array([1.0, -2.0])
    made = [
        smoothing(sampler, tau, key=KEY, displacement=displacement, **options)
        for displacement in (True, False)
    ]

    @jax.jit
    def update(states):
        found = [
            tx.update(None, state, x, value_fn=bowl)
            for tx, state in zip(made, states, strict=True)
        ]
        steps, states = zip(*found, strict=True)
        return steps, list(states)

    states = [tx.init(x) for tx in made]
    factors = []
    for _ in range(3):
        (step, gradient), states = update(states)
        info = states[0].info
        factors.append(float(info.beta_used * info.tau_used))
        np.testing.assert_allclose(step, factors[-1] * gradient, rtol=1e-5)
    assert len(set(factors)) == (1 if name == "number" else 3)


def test_half_precision_holds_the_displacement():
    """Where the gradient is beyond its range."""
    x = jnp.ones(3, jnp.float16)

    def steep(x):
        return 1e5 * linear(x.astype(jnp.float32))

    for displacement in (True, False):
        tx = lejax.local_entropy(
            lejax.importance(200), 1e-4, key=KEY, beta=1e-3, displacement=displacement
        )
        found, _ = jax.jit(
            lambda state, tx=tx: tx.update(None, state, x, value_fn=steep)
        )(tx.init(x))
        assert bool((found != 0).all()) == displacement


CONTROLLED = {
    "controller": {
        "tau": lejax.target_share(0.5, 0.01),
        "sampler": lejax.importance(40),
    },
    "adapted": {"tau": 0.3, "sampler": lejax.importance(40, beta_share=0.5)},
}


@pytest.mark.parametrize("name", CONTROLLED)
def test_minimize_takes_the_whole_displacement(name):
    options = CONTROLLED[name]
    result = lejax.minimize(bowl, jnp.ones(2), key=KEY, num_updates=12, **options)
    tx = optax.chain(
        lejax.local_entropy(
            options["sampler"], options["tau"], key=KEY, displacement=True
        ),
        optax.sgd(1.0),
    )

    def update(carry, _):
        x, state = carry
        step, state = tx.update(None, state, x, value_fn=bowl)
        return (optax.apply_updates(x, step), state), None

    x = jnp.ones(2)
    (x, _), _ = jax.lax.scan(update, (x, tx.init(x)), length=12)
    assert_close(result.params, x)


def test_it_goes_down_on_the_quadratic():
    """x_{k+1} = E_q[X] at every τ that it takes: F falls, from far too large a τ."""
    tau = lejax.target_share(0.3, 1e3)
    params = QUADRATIC.params()
    tx = optax.chain(
        lejax.local_entropy(lejax.importance(500), tau, key=KEY, displacement=True),
        optax.sgd(1.0),
    )

    def update(carry, _):
        params, state = carry
        step, state = tx.update(None, state, params, value_fn=QUADRATIC.value_fn)
        params = optax.apply_updates(params, step)
        return (params, state), QUADRATIC.value_fn(params)

    _, values = jax.lax.scan(update, (params, tx.init(params)), length=60)
    assert values.max() < 1.05 * QUADRATIC.value_fn(params)
    assert_mean(values[-20:], 0, bias=0.1 * float(QUADRATIC.value_fn(params)))


@pytest.mark.parametrize("share", [0.05, optax.constant_schedule(0.05)])
def test_a_share_of_too_few_samples(share):
    """Below √(10/J) a leap at a few samples may pass for what is wanted."""
    tau = lejax.target_share(share, 0.1)
    message = r"share(\(0\))? must be at least √\(10/J\) = 0.1 for importance\(1000\)"
    with pytest.raises(ValueError, match=message):
        lejax.local_entropy(lejax.importance(1000), tau, key=jax.random.key(0))
    lejax.local_entropy(lejax.importance(4000), tau, key=jax.random.key(0))
