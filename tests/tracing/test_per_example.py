"""Which layers have credit by example, and which have not, as read from the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.per_example import (
    PARAMS,
    ROWS,
    assert_zero,
    attention,
    batch_norm,
    dense,
    linear,
    mean_of_control_variates,
    normal,
    of,
    penalised,
    positions,
    reasons,
    shuffled,
    tied,
)
from cases.reduction import equinox_network, linen_network, nnx_network
from cases.spaces import reduced

import lejax


@pytest.mark.standard
@pytest.mark.parametrize("case", [linen_network, nnx_network, equinox_network])
def test_networks_of_libraries_as_they_are(case):
    value_fn, params, batch, _ = case()
    assert set(reasons(value_fn, params, batch)) == {""}


REFUSED = {
    "batch norm": (batch_norm, "examples meet in reduce_sum", ""),
    "attention across examples": (attention, "examples meet in dot_general", ""),
    "tied": (tied, "used more than once", ""),
    "positions": (positions, "the positions of an example span its 3 inputs", ""),
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


@pytest.mark.parametrize(
    "name",
    [
        name if name == "batch norm" else pytest.param(name, marks=pytest.mark.slow)
        for name in REFUSED
    ],
)
def test_what_is_left_of_a_refused_network_has_mean_zero(name):
    forward, *_ = REFUSED[name]
    params = {"v": PARAMS["v"], "w": PARAMS["w"]}
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
    assert {leaf.credit for leaf in in_turn.leaves} == {"not with inner batches"}


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


def test_a_loss_with_side_effects_is_left_whole():
    def loss(params, x):
        jax.debug.callback(lambda: None)
        return jnp.mean(dense(params, x) ** 2)

    (reason,) = set(reasons(loss, PARAMS, ROWS))
    assert reason.startswith("the loss cannot be run in parts")


SUMS = {
    "of all outputs": lambda y: jnp.mean(y**2),
    "of sums": lambda y: jnp.sum(y**2, -1).sum() / 5,
    "of a mean": lambda y: jnp.mean(y**2, 1).mean(),
    "scaled": lambda y: 1 - 3 * (-jnp.abs(y).sum() + 2) / 7,
    "of two sums": lambda y: jnp.mean(y**2) - jnp.mean(jnp.cos(y[:, 0])),
    "with weights": lambda y: jnp.average(y[:, 0] ** 2, weights=jnp.arange(5.0)),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_sum_is_found(name):
    """Beside a penalty, which takes its own leaf's credit, and constants."""

    def loss(params, x):
        return SUMS[name](dense(params, x)) + jnp.sum(params["b"] ** 2)

    found = dict(zip(sorted(PARAMS), reasons(loss, PARAMS, ROWS), strict=True))
    assert {leaf for leaf, reason in found.items() if not reason} == {"c", "v", "w"}
    space = reduced(loss, PARAMS, ROWS, False, credit=True)
    moved = space.zeros | {"v": jnp.ones_like(space.zeros["v"])}
    (before, at_origin), (after, there) = map(
        space.control_variate.examine, map(space.blocks, (space.zeros, moved))
    )
    changes = there.losses - at_origin.losses
    assert changes.shape == (5,)
    np.testing.assert_allclose(changes.sum(), after - before, rtol=1e-4)
