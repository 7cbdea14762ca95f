"""Layers whose examples have several rows: sequences and convolutions."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.per_example import assert_zero, mean_of_control_variates, normal, reasons
from cases.problems import assert_mean, replicate
from cases.spaces import reading

import lejax
from lejax._spaces.row_span import make_matrix_layer, products_of_noise, row_basis
from lejax._tracing.layers import FEW_POSITIONS


class Case(NamedTuple):
    """A network of examples, and which of its leaves they see apart."""

    outputs: Any  # (params, x) -> whatever has the examples along its first axis
    params: Any
    batch: jax.Array
    seen: set[str]

    def loss(self, params, x):
        y = self.outputs(params, x)
        return jnp.mean(jnp.exp(jnp.sin(2 * y)) + y**2 / 3)


def sequence():
    params = {"w": normal(0, 3, 4), "b": normal(1, 4), "v": normal(2, 4)}

    def outputs(params, x):
        return (jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]).sum(1)

    return Case(outputs, params, normal(3, 4, 2, 3), {"w", "b", "v"})


def repeated():
    """Every position the same: the rows of an example span but one direction."""
    case = sequence()
    return case._replace(batch=jnp.repeat(case.batch[:, :1], 2, 1))


def time_first():
    case = sequence()
    return case._replace(
        outputs=lambda params, x: case.outputs(params, x.transpose(1, 0, 2)),
        batch=case.batch.transpose(1, 0, 2),
    )


def one_row_of_several():
    """Positions that do not meet may count as examples of their own."""
    params = {"w": normal(0, 3, 2), "b": normal(1, 2)}

    def outputs(params, x):
        return jnp.tanh(x @ params["w"] + params["b"]).sum(-1)

    return Case(outputs, params, normal(3, 2, 2, 3), {"w", "b"})


def attention():
    """Positions meet, examples do not: three kernels, and a layer behind."""
    keys = {name: normal(place, 3, 3) for place, name in enumerate("kqvw")}

    def outputs(params, x):
        q, k, v = (x @ params[name] for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("btn,bsn->bts", q, k), -1)
        return jnp.tanh(weights @ v @ params["w"]).mean((1, 2))

    return Case(outputs, keys, normal(5, 3, 2, 3), set("kqvw"))


def many_positions():
    """Too many for a span in every draw, but not for one in all."""
    params = {"w": normal(0, 8, 7), "u": normal(1, 7, 7), "v": normal(2, 7)}

    def outputs(params, x):
        hidden = jnp.tanh(jnp.tanh(x @ params["w"] / 3) @ params["u"] / 2)
        return hidden.mean(1) @ params["v"]

    return Case(outputs, params, normal(3, 3, 6, 8), {"w", "v"})


def heads():
    """Two axes of units, in an order that is not that of the kernel."""
    params = {"w": normal(0, 2, 3, 2), "b": normal(1, 2, 2), "v": normal(2, 4)}

    def outputs(params, x):
        y = jnp.einsum("btn,knh->bthk", x, params["w"])
        y = jnp.swapaxes(jnp.tanh(y + params["b"]), 2, 3)
        return jnp.mean(y.reshape(3, 2, 4) @ params["v"], 1)

    return Case(outputs, params, normal(3, 3, 2, 3), {"w", "b", "v"})


def convolution(strides=(1, 1), padding="VALID", layout="NHWC", deep=False):
    shapes = {"NHWC": (2, 3, 3, 2), "NCHW": (2, 2, 3, 3)}
    kernels = {"NHWC": ("HWIO", (2, 2, 2, 3)), "NCHW": ("OIHW", (3, 2, 2, 2))}
    kernel_layout, shape = kernels[layout]
    params = {"w": normal(0, *shape) / 2, "b": normal(1, 3), "v": normal(2, 2, 2, 3, 2)}
    numbers = (layout, kernel_layout, layout)

    def outputs(params, x):
        y = jax.lax.conv_general_dilated(
            x, params["w"], strides, padding, dimension_numbers=numbers
        )
        bias = params["b"] if layout == "NHWC" else params["b"][:, None, None]
        y = jnp.tanh(y + bias)
        if not deep:
            return y.mean((1, 2, 3))
        y = jax.lax.conv_general_dilated(
            y, params["v"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.mean((1, 2, 3))

    seen = {"w", "b", "v"} if deep else {"w", "b"}
    if not deep:
        del params["v"]
    return Case(outputs, params, normal(3, *shapes[layout]), seen)


def linen_convolution():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.max_pool(linen.relu(linen.Conv(3, (2, 2))(x)), (2, 2), (2, 2))
            x = linen.tanh(linen.Conv(2, (2, 2), padding="VALID")(x))
            return linen.Dense(1)(x.reshape(len(x), -1))[:, 0]

    network, x = Network(), normal(0, 2, 6, 6, 1)
    params = network.init(jax.random.key(1), x)
    flat, structure = jax.tree.flatten(params)
    names = [f"{place}" for place in range(len(flat))]
    return Case(
        lambda params, x: network.apply(
            structure.unflatten(params[name] for name in names), x
        ),
        dict(zip(names, flat, strict=True)),
        x,
        {"2", "3", "4", "5"},  # the first has more positions than a patch has numbers
    )


CASES = {
    "sequence": sequence,
    "repeated": repeated,
    "time first": time_first,
    "one row of several": one_row_of_several,
    "attention": attention,
    "many positions": many_positions,
    "heads": heads,
    "convolution": convolution,
    "convolution, strides": lambda: convolution((2, 1), ((1, 0), (0, 0))),
    "convolution, channels first": lambda: convolution(layout="NCHW"),
    "convolution, deep": lambda: convolution(deep=True),
    "linen": linen_convolution,
}


@pytest.mark.parametrize("name", CASES)
def test_layers_as_matrices(name):
    """Hᵢ W, laid out, is what the program computes; the span holds the rows."""
    case = CASES[name]()
    program, sights = reading(case.loss, case.params, case.batch)
    leaves = jax.tree.leaves(case.params)
    names = sorted(case.params)
    assert {
        leaf for leaf, why in zip(names, sights.reasons, strict=True) if not why
    } == case.seen

    @jax.jit
    def of_layers(leaves):
        values = program.constants | dict(zip(program.inputs, leaves, strict=True))
        program.run(program.operations, values)
        return [of_layer(sight, values, leaves) for sight in sights.layers]

    def of_layer(sight, values, leaves):
        layer = make_matrix_layer(sight, program, values)
        mine = sight.rows(values[sight.inputs])
        seen = mine @ layer.matrix(leaves[sight.kernel])
        if sight.bias is not None:
            seen = seen + layer.vector(leaves[sight.bias])
        result = values[sight.result]
        met = layer.fixed_basis
        rows = jnp.concatenate([met.rows, met.ones[..., None]], -1)
        rows = rows / jnp.sqrt(met.squared_norms)[:, None, None]
        if sight.bias is None:
            rows = rows[..., :-1]
        gram = jnp.einsum("btn,bsn->bts", rows, rows)
        # What is seen of a noise that lies in the span: the rows times that noise.
        noise = normal(9, *layer.zeros.shape)
        of_all = jnp.einsum("btn,bto->bno", rows, noise)
        if sight.bias is not None:
            mine = jnp.concatenate([mine, jnp.ones_like(mine[..., :1])], -1)
        products = products_of_noise(met, noise), mine @ of_all
        return (sight.as_result(seen, result.shape), result), gram, products

    for (seen, result), gram, products in jax.device_get(of_layers(leaves)):
        np.testing.assert_allclose(seen, result, 1e-5, 1e-5)
        # Orthonormal, but for what is not needed.
        needed = np.round(np.diagonal(gram, axis1=1, axis2=2))
        eye = np.eye(gram.shape[1]) * needed[:, None]
        np.testing.assert_allclose(gram, eye, atol=1e-5)
        if name == "repeated":
            assert needed.sum() == len(gram)
        np.testing.assert_allclose(*products, 1e-4, 1e-4)


def thinned(second, by_default):
    """Every case with every value of the other argument, but few by default."""
    return [
        pytest.param(*case, marks=() if case in by_default else pytest.mark.slow)
        for case in itertools.product(CASES, second)
    ]


@pytest.mark.parametrize(
    ("name", "reduction"),
    thinned(
        (True, False),
        {
            ("repeated", False),
            ("attention", False),
            ("many positions", True),
            ("heads", True),
            ("convolution, strides", False),
        },
    ),
)
def test_the_control_variate_has_mean_zero(name, reduction):
    case = CASES[name]()
    sums = mean_of_control_variates(
        case.loss, case.params, case.batch, 0.3, blocks=200, reduction=reduction
    )
    assert_zero(sums)


@pytest.mark.parametrize(
    ("name", "tau"),
    thinned(
        (0.3, 1.5),
        {
            ("sequence", 0.3),
            ("attention", 1.5),
            ("many positions", 1.5),
            ("convolution, deep", 0.3),
        },
    ),
)
def test_the_same_heat(name, tau):
    """Drawn by example in what its rows span, as by draws in common."""
    case = CASES[name]()

    def estimates(credit):
        sampler = lejax.score_function(40, credit=credit)

        def one(key, params, batch, tau):
            u, _, info = sampler.estimate(
                key, (), params, value_fn=case.loss, batch=batch, tau=tau
            )
            leaves = [leaf.ravel() for leaf in jax.tree.leaves(u)]
            return jnp.concatenate(leaves), info.objective

        given = case.params, case.batch, tau
        return replicate(one, 1000, seed=int(credit), given=given)

    (ours, value), (theirs, their_value) = estimates(True), estimates(False)
    assert_mean(ours - theirs, 0.0, sigmas=4.5)
    assert_mean(value - their_value, 0.0)


@pytest.mark.parametrize(
    ("reduction", "num_samples"),
    [
        (True, 100),
        pytest.param(True, 600, marks=pytest.mark.slow),
        pytest.param(False, 600, marks=pytest.mark.slow),
    ],
)
def test_less_noise(reduction, num_samples):
    """Eight examples of three positions, each of 40 numbers."""
    params = {
        "w": normal(8, 40, 30) / 6,
        "u": normal(9, 30, 30) / 6,
        "v": normal(7, 30),
    }
    batch = normal(10, 8, 3, 40)

    def loss(params, x):
        hidden = jnp.tanh(jnp.tanh(x @ params["w"]) @ params["u"])
        return jnp.mean(jnp.square(hidden.mean(1) @ params["v"] - 1))

    assert set(reasons(loss, params, batch)) == {""}

    def variance(**options):
        sampler = lejax.importance(num_samples, reduction=reduction, **options)

        def estimate(key, params, batch):
            u, _, _ = sampler.estimate(
                key, (), params, value_fn=loss, batch=batch, tau=0.01
            )
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(u)])

        return np.var(replicate(estimate, 40, given=(params, batch)), 0).sum()

    assert variance() < 0.4 * variance(credit=False)


@pytest.mark.parametrize("positions", [FEW_POSITIONS, FEW_POSITIONS + 3])
def test_rows_that_nearly_repeat_each_other(positions):
    """Gram and Schmidt once would leave them far from orthogonal."""
    rows = normal(0, 1, 40) + 1e-3 * normal(1, positions, 40)
    met = row_basis(rows[None], has_bias=False)
    found = met.rows[0] @ met.rows[0].T
    np.testing.assert_allclose(found, np.eye(positions), atol=1e-5)
    np.testing.assert_allclose(met.root[0].T @ met.rows[0], rows, atol=1e-5)
