"""β for a share of effective samples: by brute force, and update by update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import QUADRATIC, assert_mean

import lejax

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=500)
LOSSES = {
    "normal": NORMAL,
    "antithetic": np.concatenate([NORMAL + NORMAL**2, NORMAL**2 - NORMAL]),
    "skewed": RNG.exponential(size=401) ** 3,
    "nearly equal": 1e4 + NORMAL,
    "large": 1e30 * NORMAL,
    "small": 1e-30 * NORMAL,
    "one far above": np.append(1e-3 * NORMAL, 1e4),
    "one far below": np.append(NORMAL, -1e4),
    "counts": RNG.binomial(200, 0.3, size=300),
    "two": np.array([0.0, 1.0]),
}


def share_at(losses, beta):
    """ESS/J in float64, written plainly."""
    w = np.exp(-beta * (losses - losses.min()))
    return w.sum() ** 2 / (w**2).sum() / losses.size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LOSSES)
def test_bisection_is_brute_force_on_a_grid(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        stored = jnp.asarray(LOSSES[name], dtype)
        losses = np.asarray(stored, np.float64)
        found = jax.jit(jax.vmap(lejax.beta_for_share, (None, 0)))(
            stored, jnp.asarray(wanted := [0.005, 0.1, 0.5, 0.9, 0.999], dtype)
        )
        assert found.dtype == dtype
    spread = losses.max() - losses.min()
    grid = np.geomspace(1e-3, 1e13, 16 * 24 + 1) / spread
    shares = np.array([share_at(losses, beta) for beta in grid])
    least = (losses == losses.min()).mean()
    tried = 0
    for share, beta in zip(wanted, np.asarray(found, np.float64), strict=True):
        if share < least * (1 + 1e-9):
            continue
        tried += 1
        at = np.flatnonzero(shares < share)[0]
        assert grid[at - 1] * (1 - 1e-4) < beta < grid[at] * (1 + 1e-4)
        # 1/s - 1 is the relative variance: what is to be met, however near 1 the share.
        variance = 1 / share_at(losses, beta) - 1
        np.testing.assert_allclose(variance, 1 / share - 1, rtol=1e-3)
    assert tried >= 2


beta_for_share = jax.jit(lejax.beta_for_share)


def test_losses_that_are_not_finite_are_left_out():
    bad = np.array([np.nan, np.inf, -np.inf])
    losses = jnp.asarray(np.concatenate([NORMAL, bad]), jnp.float32)
    expected = beta_for_share(losses[:-3], 0.4)
    assert beta_for_share(losses, 0.4) == pytest.approx(float(expected), rel=1e-6)
    assert beta_for_share(losses[::-1].reshape(1, -1), 0.4) == pytest.approx(
        float(expected), rel=1e-5
    )


@pytest.mark.parametrize("losses", [[], [3.0], [2.0, 2.0], [np.nan, np.inf, 1.0]])
def test_losses_that_do_not_tell(losses):
    losses = jnp.asarray(losses, jnp.float32)
    assert beta_for_share(losses, 0.4) == 1
    assert beta_for_share(losses, 0.4, default=7.0) == 7


def test_a_share_that_no_beta_reaches():
    """Then the others have lost their weight."""
    losses = jnp.array([1.0, 1.0, 1.5, 3.0])
    assert beta_for_share(losses, 0.5001) < 20
    for share in (0.4, 1e-6, 1e-37):
        np.testing.assert_allclose(beta_for_share(losses, share), 80, rtol=1e-5)


@pytest.mark.parametrize("penalty", [1e3, 1e30, 3e38])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.88])
def test_penalties_among_the_losses(penalty, share):
    """The share is reached in the units of the others, and no penalty is special."""
    losses = np.where(np.arange(1000) % 10 == 3, penalty, np.tile(NORMAL, 10)[:1000])
    beta = float(beta_for_share(jnp.asarray(losses, jnp.float32), share))
    w = np.exp(-beta * (losses - losses.min()))
    assert abs(w.sum() ** 2 / (w**2).sum() / 1000 - share) < 1e-3


@pytest.mark.parametrize("scale", [1e38, 3e38, 1e-38, 1e-44])
def test_the_ends_of_the_range(scale):
    """Finite, whatever the losses are."""
    for losses in (np.append(NORMAL / 5, 0.0), [1.0, -1.0], [0.0, 1.0]):
        stored = jnp.asarray(np.asarray(losses) * scale, jnp.float32)
        for share in (1e-30, 0.5, 1 - 1e-7):
            beta = beta_for_share(stored, share)
            assert 0 < beta < np.inf


def test_of_integers_in_half_precision_and_of_many_at_once():
    counts = jnp.array([3, 5, 5, 9])
    expected = lejax.beta_for_share(counts.astype(jnp.float32), 0.7)
    assert lejax.beta_for_share(counts, 0.7) == expected
    half = lejax.beta_for_share(counts.astype(jnp.bfloat16), 0.7)
    assert (half, half.dtype) == (expected, jnp.float32)
    rows = jax.random.normal(jax.random.key(0), (3, 50))
    mapped = jax.vmap(lambda row: lejax.beta_for_share(row, 0.7))(rows)
    _, scanned = jax.lax.scan(
        lambda _, row: (_, lejax.beta_for_share(row, 0.7)), 0, rows
    )
    np.testing.assert_allclose(
        mapped, [lejax.beta_for_share(r, 0.7) for r in rows], 1e-6
    )
    np.testing.assert_allclose(mapped, scanned, 1e-6)


def of_quadratic(share, tau):
    """β at which the share is effective, from E w = exp(-βF) in closed form."""
    x = QUADRATIC.flat(QUADRATIC.params())

    def excess(beta):
        once, twice = (QUADRATIC.free_energy(x, tau, b) for b in (beta, 2 * beta))
        return 2 * beta * (twice - once) - np.log(share)

    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_beta_adapts_and_the_gradient_is_that_of_the_beta_used(share, antithetic):
    tau, params = 0.3, QUADRATIC.params()
    x = QUADRATIC.flat(params)
    sampler = lejax.importance(2000, antithetic=antithetic, beta_share=share)

    def run(key):
        tx = lejax.local_entropy(sampler, tau, key=key, beta=0.01)

        def update(state, _):
            grads, state = tx.update(None, state, params, value_fn=QUADRATIC.value_fn)
            return state, (grads, state.info)

        return jax.lax.scan(update, tx.init(params), length=3)[1]

    keys = jax.random.split(jax.random.key(0), 64)
    grads, info = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_array_equal(info.beta_used[:, 0], jnp.float32(0.01))
    expected = of_quadratic(share, tau)
    assert not 0.5 < expected / 0.01 < 2
    # The root of an estimated share is biased by O(1/ESS).
    assert_mean(info.beta_used[:, 1:], expected, bias=0.005 * expected)
    assert_mean(info.effective_sample_size[:, 1:] / 2000, share, bias=0.005)
    for k in range(3):
        truth = [
            -QUADRATIC.displacement(x, tau, beta) / (beta * tau)
            for beta in np.asarray(info.beta_used[:, k], np.float64)
        ]
        found = QUADRATIC.flat(jax.tree.map(lambda leaf, k=k: leaf[:, k], grads))
        assert_mean(found - truth, 0, bias=0.01)
        values = [QUADRATIC.free_energy(x, tau, b) for b in info.beta_used[:, k]]
        assert_mean(np.asarray(info.objective[:, k]) - values, 0, bias=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"antithetic": False, "credit": True},
        {"signs_per_draw": 4},
        pytest.param({"antithetic": False}, marks=pytest.mark.slow),
        pytest.param({"credit": False, "reduction": False}, marks=pytest.mark.slow),
    ],
)
def test_all_losses_of_an_update_are_kept_and_no_more_are_evaluated(options):
    seen = []
    batch = jax.random.normal(jax.random.key(1), (6, 4))

    def f(w, batch):
        value = jnp.mean(jnp.sin(batch @ w) ** 2)
        jax.debug.callback(lambda v: seen.append(np.ravel(v)), value)
        return value

    w = jnp.ones((4, 3))
    given = {"value_fn": f, "batch": batch, "tau": 0.4, "beta": 2.0}
    sampler = lejax.importance(101, chunk_size=20, beta_share=0.6, **options)
    key = jax.random.key(0)
    step, state, info = jax.jit(lambda s: sampler.estimate(key, s, w, **given))(
        sampler.init(w)
    )
    jax.effects_barrier()
    losses = np.concatenate(seen)
    assert losses.size == info.num_evaluations
    # Credit by example looks at the parameters first, which are no sample.
    losses = losses[losses.size - 101 :]
    np.testing.assert_allclose(
        state.next_beta, lejax.beta_for_share(jnp.asarray(losses), 0.6), rtol=1e-4
    )
    plain = lejax.importance(101, chunk_size=20, **options)
    expected, _, told = jax.jit(lambda: plain.estimate(key, (), w, **given))()
    np.testing.assert_allclose(step, expected, rtol=1e-5, atol=1e-7)
    assert told.num_evaluations == info.num_evaluations


@pytest.mark.parametrize("samples", [3, pytest.param(17, marks=pytest.mark.slow)])
def test_members_of_an_axis_find_the_beta_of_the_whole(samples):
    """The others' losses among it, and those of which a part of the data fails."""
    batch = jax.random.normal(jax.random.key(1), (4, 3))

    def f(w, batch):
        return jnp.mean(jnp.where(w[0] > 1.5, jnp.nan, jnp.sin(batch @ w) ** 2))

    def betas(rows, **axes):
        sampler = lejax.importance(samples, beta_share=0.6, **axes)

        def update(state, key):
            _, state, info = sampler.estimate(
                key, state, jnp.ones(3), value_fn=f, batch=rows, tau=0.4, beta=2.0
            )
            return state, info.beta_used

        keys = jax.random.split(jax.random.key(0), 4)
        return jax.lax.scan(update, sampler.init(jnp.ones(3)), keys)[1]

    expected = jax.jit(betas)(batch)
    assert (np.diff(expected) != 0).all()
    for members in (2, 4):
        shared = jax.jit(
            jax.vmap(
                lambda _: betas(batch, axis_name="draws"),
                axis_name="draws",
                axis_size=members,
            )
        )(jnp.arange(members))
        split = jax.jit(
            jax.vmap(lambda rows: betas(rows, data_axis_name="rows"), axis_name="rows")
        )
        for found in (shared, split(batch.reshape(members, -1, 3))):
            np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))
            np.testing.assert_allclose(found[0], expected, rtol=1e-4)


def test_an_update_that_failed_keeps_beta():
    sampler = lejax.importance(50, beta_share=0.5)
    tx = lejax.local_entropy(sampler, 0.3, key=jax.random.key(0), beta=2.0)
    x = jnp.ones(3)

    def loss(x, fails):
        return jnp.where(fails, jnp.nan, jnp.sum(x**2))

    update = jax.jit(lambda s, fails: tx.update(None, s, x, value_fn=loss, batch=fails))
    state = tx.init(x)
    grads, state = update(state, True)
    np.testing.assert_array_equal(grads, 0)
    assert state.sampler.next_beta == 2
    _, state = update(state, False)
    found = state.sampler.next_beta
    assert found != 2
    _, state = update(state, True)
    assert state.sampler.next_beta == found


def test_the_state_keeps_its_dtype():
    """Of the parameters, whichever the loss sees."""
    with jax.enable_x64(True):
        params = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2)}
        sampler = lejax.importance(20, beta_share=0.5)
        start = sampler.init(params)
        _, state, _ = jax.eval_shape(
            lambda s: sampler.estimate(
                jax.random.key(0),
                s,
                params,
                value_fn=lambda p: jnp.sum(p["a"] ** 2),
                tau=0.1,
            ),
            start,
        )
        assert start.next_beta.dtype == state.next_beta.dtype == jnp.float64
