"""Credit by example: a control variate of mean zero, and who gets it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_mean, replicate
from reduction_cases import equinox_network, linen_network, nnx_network

import lejax
from lejax._credit import control_variate
from lejax._reduction import find_reduced, reduced_space
from lejax._sights import find_sights

pytestmark = pytest.mark.compiles


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def dense(params, x):
    """Two layers with biases, of 3 inputs, 4 hidden units and 2 outputs."""
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return hidden @ params["v"] + params["c"]


PARAMS = {
    "b": normal(0, 4) / 2,
    "c": normal(1, 2) / 2,
    "v": normal(2, 4, 2),
    "w": normal(3, 3, 4),
}
ROWS = normal(4, 5, 3)
LABELS = jnp.array([0, 1, 1, 0, 1])
# Smooth, skewed, with kinks, and with steps.
LOSSES = {
    "cross-entropy": lambda y: optax.losses.softmax_cross_entropy_with_integer_labels(
        y, LABELS
    ),
    "square": lambda y: jnp.square(y - 1).sum(-1),
    "skewed": lambda y: jnp.exp(y[:, 0]) + jnp.abs(y[:, 1]),
    "errors": lambda y: (y.argmax(-1) != LABELS).astype(jnp.float32),
}


def network(name):
    return lambda params, x: jnp.mean(LOSSES[name](dense(params, x)))


def reasons(value_fn, params, batch):
    program, found = find_reduced(value_fn, params, batch, inner_batches=False)
    return find_sights(program, len(found)).reasons


def mean_of_control_variates(
    value_fn, params, batch, tau, blocks=1000, draws=500, reduction=False
):
    """ΣC of blocks of antithetic pairs, (blocks, numbers), each of leaf after leaf."""
    space = reduced_space(
        value_fn, params, batch, False, reduction=reduction, credit=True
    )
    signs = jnp.array([1.0, -1.0])

    def block(key):
        noise = jax.vmap(lambda key: space.noise(key, 1))(jax.random.split(key, draws))
        moves = jax.tree.map(lambda leaf: leaf * jnp.sqrt(jnp.float32(tau)), noise)
        seen = [
            jax.vmap(jax.vmap(lambda u, s=s: space.credit.examine(u, sign=s)[1]))(moves)
            for s in (1.0, -1.0)
        ]
        seen = jax.tree.map(lambda *both: jnp.stack(both), *seen)
        valid = jnp.ones((draws, 1), bool)
        sums = control_variate(space.credit, moves, signs, valid, seen)
        return jnp.concatenate([part.ravel() for part in sums if part is not None])

    keys = jax.random.split(jax.random.key(5), blocks)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(block, keys))(keys), np.float64)


def assert_zero(sums):
    z = sums.mean(0) / (sums.std(0, ddof=1) / np.sqrt(len(sums)))
    assert np.abs(z).max() < 4.5, z
    # Together: each z² is 1 on average, and has the variance 2; they are correlated.
    assert np.square(z).mean() < 1 + 5 * np.sqrt(2 / len(z)), z


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_control_variate_has_mean_zero(name, tau):
    """Over 10^6 evaluations, for every number of every layer."""
    sums = mean_of_control_variates(network(name), PARAMS, ROWS, tau)
    assert sums.shape[1] == 26
    assert_zero(sums)


@pytest.mark.parametrize("beta", [0.5, 3.0])
@pytest.mark.parametrize("tau", [0.3, 1.5])
def test_unbiased_against_quadrature(tau, beta):
    """Two layers of two units: 4 numbers, E_q[X] - x on a grid of 41^4 points."""
    params = {"v": normal(6, 2), "w": normal(7, 1, 2)}
    x, y = jnp.array([[0.5], [-1.0], [2.0]]), jnp.array([0.3, 1.0, -0.7])

    def loss(params, x):
        return jnp.mean(jnp.exp(jnp.tanh(x @ params["w"]) @ params["v"] * y) / 2)

    noise = np.linspace(-6, 6, 41)
    axis, phi = np.sqrt(tau) * noise, np.exp(-(noise**2) / 2)
    grid = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), -1).reshape(-1, 4)
    weight = functools.reduce(np.multiply.outer, [phi] * 4).ravel()

    def at(u):
        return loss({"v": params["v"] + u[:2], "w": params["w"] + u[None, 2:]}, x)

    f = jax.jit(lambda us: jax.lax.map(at, us, batch_size=2**14))(
        jnp.asarray(grid, jnp.float32)
    )
    weight = weight * np.exp(-beta * (np.asarray(f, np.float64) - float(f.min())))
    truth = weight @ grid / weight.sum()

    def estimate(key, credit):
        sampler = lejax.importance(5000, credit=credit)
        u, _, info = sampler.step(
            key, (), params, value_fn=loss, batch=x, tau=tau, beta=beta
        )
        return jnp.concatenate([u["v"], u["w"].ravel()]), info.num_evaluations

    found, evaluations = replicate(lambda key: estimate(key, True), 200)
    assert (evaluations == 5001).all()
    assert_mean(found, truth, bias=np.abs(truth) / 1000)
    plain, _ = replicate(lambda key: estimate(key, False), 200)
    assert np.var(found, 0).sum() < np.var(plain, 0).sum()


def test_less_noise():
    """A wider network, whose examples see little of its noise each."""
    params = {"w": normal(8, 40, 30) / 6, "v": normal(9, 30, 3) / 5}
    batch = normal(10, 20, 40), jnp.arange(20) % 3

    def loss(params, batch):
        logits = jnp.tanh(batch[0] @ params["w"]) @ params["v"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch[1]
        ).mean()

    def estimate(key, **options):
        sampler = lejax.importance(1000, **options)
        (u, _, _) = sampler.step(
            key, (), params, value_fn=loss, batch=batch, tau=0.01, beta=1.0
        )
        return jnp.concatenate([u["v"].ravel(), u["w"].ravel()])

    variances = [
        replicate(lambda key, o=options: estimate(key, **o), 40).var(0).sum()
        for options in (
            {"credit": True},
            {"credit": False},
            {"credit": True, "reduction": False},
            {"credit": False, "reduction": False},
        )
    ]
    assert variances[0] < 0.2 * variances[1]
    assert variances[2] < 0.2 * variances[3]


def test_the_same_by_chunks_and_by_members():
    """Whatever the chunks, and whoever draws or holds the data."""

    def step(**options):
        sampler = lejax.importance(100, credit=True, **options)
        return lambda batch: sampler.step(
            jax.random.key(1),
            (),
            PARAMS,
            value_fn=loss,
            batch=batch,
            tau=0.3,
            beta=2.0,
        )[0]

    def loss(params, batch):
        x, labels = batch
        y = dense(params, x)
        return optax.losses.softmax_cross_entropy_with_integer_labels(y, labels).mean()

    batch = normal(11, 4, 3), jnp.array([0, 1, 1, 0])
    whole = jax.jit(step())(batch)
    shares = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), batch)
    others = {
        "chunks": jax.jit(step(chunk_size=7))(batch),
        "draws": jax.vmap(step(axis_name="draws"), axis_name="draws")(shares),
        "data": jax.vmap(step(data_axis_name="rows"), axis_name="rows")(parts),
    }
    for name, other in others.items():
        for leaf, mine in whole.items():
            for found in np.asarray(other[leaf]).reshape(-1, *mine.shape):
                np.testing.assert_allclose(found, mine, 1e-4, 1e-6, err_msg=name)


def test_examples_that_fail_keep_their_part():
    """One example has no loss at half of all points: the others' credit stands."""

    def loss(params, x):
        y = dense(params, x)[:, 0]
        return jnp.mean(jnp.where((jnp.arange(5) == 2) & (y > 0), jnp.nan, y**2))

    sums = mean_of_control_variates(loss, PARAMS, ROWS, 0.3, blocks=400)
    assert_zero(sums)
    sampler = lejax.importance(100, credit=True)
    u, _, info = sampler.step(
        jax.random.key(0), (), PARAMS, value_fn=loss, batch=ROWS, tau=0.3
    )
    assert 0 < info.nonfinite_fraction < 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(u))


@pytest.mark.standard
@pytest.mark.parametrize("case", [linen_network, nnx_network, equinox_network])
def test_networks_of_libraries_as_they_are(case):
    value_fn, params, batch, _ = case()
    assert set(reasons(value_fn, params, batch)) == {""}


def of(forward):
    return lambda params, x: jnp.mean(forward(params, x) ** 2)


def batch_norm(params, x):
    y = x @ params["w"]
    y = (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5)
    return jnp.tanh(y) @ params["v"]


def attention(params, x):
    y = x @ params["w"]
    return jax.nn.softmax(y @ y.T) @ y @ params["v"]


def tied(params, x):
    return jnp.tanh(x @ params["w"] @ params["w"].T) @ params["w"] @ params["v"]


def positions(params, x):
    return jnp.tanh(x[:, None] @ params["w"]).sum(1) @ params["v"]


def penalised(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"] + jnp.sum(params["v"] ** 2)


def shuffled(params, x):
    return jnp.roll(jnp.tanh(x @ params["w"]), 1, 0) @ params["v"]


REFUSED = {
    "batch norm": (batch_norm, "examples meet in reduce_sum", ""),
    "attention across examples": (attention, "examples meet in dot_general", ""),
    "tied": (tied, "used more than once", ""),
    "positions": (positions, "its inputs have 2 axes besides their own", ""),
    "in the loss itself": (penalised, "", "used more than once"),
    "shuffled": (shuffled, "examples meet in", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """The layers after a meeting of the examples keep their credit."""
    forward, of_w, of_v = REFUSED[name]
    params = {"v": PARAMS["v"], "w": PARAMS["w"]}
    found = dict(zip(params, reasons(of(forward), params, ROWS), strict=True))
    for leaf, reason in (("w", of_w), ("v", of_v)):
        assert found[leaf].startswith(reason), found
        assert bool(found[leaf]) == bool(reason), found
    sums = mean_of_control_variates(of(forward), params, ROWS, 0.3, blocks=200)
    assert_zero(sums)


def test_a_number_added_to_each_example_is_no_bias():
    params = {"b": normal(12, 5), "w": normal(13, 3, 5)}

    def loss(params, x):
        added = jnp.broadcast_to(params["b"][:, None], (5, 5))
        return jnp.mean(jnp.exp(jnp.tanh(x @ params["w"] + added)))

    assert reasons(loss, params, ROWS) == ("used by add", "")
    assert_zero(mean_of_control_variates(loss, params, ROWS, 0.3, blocks=200))


def test_the_report_tells():
    params = {"v": PARAMS["v"], "w": PARAMS["w"]}
    report = lejax.reduction_report(of(batch_norm), params, ROWS)
    assert [leaf.credit for leaf in report.leaves] == [
        "by example",
        "examples meet in reduce_sum",
    ]
    in_turn = lejax.reduction_report(
        of(batch_norm), params, ROWS[None], inner_batches=True
    )
    assert {leaf.credit for leaf in in_turn.leaves} == {"batches take turns"}


def linear(params, x):
    return x @ params["w"] @ params["v"]


def test_inputs_that_are_a_product_themselves():
    """The first layer's product at x is known, but not what the second layer gets."""
    params = {"v": PARAMS["v"], "w": PARAMS["w"]}
    assert set(reasons(of(linear), params, ROWS)) == {""}
    assert_zero(mean_of_control_variates(of(linear), params, ROWS, 0.3, blocks=300))
    sums = mean_of_control_variates(
        of(linear), params, ROWS[:2], 0.3, blocks=300, reduction=True
    )
    assert_zero(sums)


@jax.custom_vjp
def straight_through(x):
    return jnp.sign(x)


straight_through.defvjp(lambda x: (jnp.sign(x), None), lambda _, g: (g,))


def test_custom_derivative_rules_are_looked_into():
    """Of activations; a rule that lets the examples meet is seen through as well."""

    @jax.custom_jvp
    def meeting(x):
        return x - x.mean(0)

    meeting.defjvp(lambda x, t: (meeting(*x), *t))
    params = {"v": PARAMS["v"], "w": PARAMS["w"]}

    def by(activation):
        return of(lambda params, x: activation(x @ params["w"]) @ params["v"])

    for activation in (straight_through, jax.nn.relu, jax.nn.silu, jax.nn.gelu):
        assert set(reasons(by(activation), params, ROWS)) == {""}, activation
    found = reasons(by(meeting), params, ROWS)
    assert found == ("", "examples meet in custom_jvp_call")


def test_no_pairs_no_credit():
    with pytest.raises(ValueError, match="credit=True needs antithetic pairs"):
        lejax.importance(10, antithetic=False, credit=True)


def test_a_loss_with_side_effects_is_left_whole():
    def loss(params, x):
        jax.debug.callback(lambda: None)
        return jnp.mean(dense(params, x) ** 2)

    (reason,) = set(reasons(loss, PARAMS, ROWS))
    assert reason.startswith("the loss cannot be run in parts")


def test_no_sum_over_examples():
    def worst(params, x):
        return jnp.max(dense(params, x) ** 2)

    assert set(reasons(worst, PARAMS, ROWS)) == {"the loss is no sum over examples"}
    u, _, info = lejax.importance(20, credit=True).step(
        jax.random.key(0), (), PARAMS, value_fn=worst, batch=ROWS, tau=0.3
    )
    plain, _, _ = lejax.importance(20).step(
        jax.random.key(0), (), PARAMS, value_fn=worst, batch=ROWS, tau=0.3
    )
    assert info.num_evaluations == 20
    jax.tree.map(np.testing.assert_array_equal, u, plain)


SUMS = {
    "of all outputs": lambda y: jnp.mean(y**2),
    "of sums": lambda y: jnp.sum(y**2, -1).sum() / 5,
    "of a mean": lambda y: jnp.mean(y**2, 1).mean(),
    "scaled": lambda y: 1 - 3 * (-jnp.abs(y).sum() + 2) / 7,
    "with weights": lambda y: jnp.average(y[:, 0] ** 2, weights=jnp.arange(5.0)),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_sum_is_found(name):
    """Beside a penalty, which takes its own leaf's credit, and constants."""

    def loss(params, x):
        return SUMS[name](dense(params, x)) + jnp.sum(params["b"] ** 2)

    found = dict(zip(sorted(PARAMS), reasons(loss, PARAMS, ROWS), strict=True))
    assert {leaf for leaf, reason in found.items() if not reason} == {"c", "v", "w"}
    space = reduced_space(loss, PARAMS, ROWS, False, credit=True)
    moved = space.zeros | {"v": jnp.ones_like(space.zeros["v"])}
    (before, at_origin), (after, there) = map(
        space.credit.examine, (space.zeros, moved)
    )
    changes = there.losses - at_origin.losses
    assert changes.shape == (5,)
    np.testing.assert_allclose(changes.sum(), after - before, rtol=1e-4)
