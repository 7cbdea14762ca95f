"""The report that a person reads, to the letter."""

from __future__ import annotations

import textwrap

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import lejax

X = jnp.ones((3, 8))
W = jnp.ones((8, 2))


def assert_report(report, expected):
    assert str(report) == textwrap.dedent(expected).strip()


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, tokens, images):
        words = linen.Embed(50, 4, name="w")(tokens).mean(1)
        pixels = linen.Conv(2, (3, 3), name="pixels")(images)
        hidden = linen.Dense(4, name="hidden")(pixels.reshape(len(pixels), -1))
        return linen.Dense(1, name="out")(jnp.tanh(words + hidden))


@pytest.mark.standard
def test_the_report_of_an_embedding_and_a_convolution():
    network = LinenNetwork()
    batch = jnp.zeros((2, 3), int), jnp.zeros((2, 4, 4, 1))
    params = network.init(jax.random.key(0), *batch)["params"]

    def value_fn(params, batch):
        return network.apply({"params": params}, *batch).mean()

    assert_report(
        lejax.reduction_report(value_fn, params, batch),
        """
        leaf                  shape         drawn                                        credit
        ['hidden']['bias']    (4,)          (4,)          used by reshape                by example
        ['hidden']['kernel']  (32, 4)       (32, 4)       its rows depend on parameters  by example
        ['out']['bias']       (1,)          (1,)          used by reshape                by example
        ['out']['kernel']     (4, 1)        (4, 1)        its rows depend on parameters  by example
        ['pixels']['bias']    (2,)          (2,)          used by reshape                used by add
        ['pixels']['kernel']  (3, 3, 1, 2)  (3, 3, 1, 2)  used by conv_general_dilated   the positions of an example span its 9 inputs
        ['w']['embedding']    (50, 4)       (6, 4)        6 rows meet 50 inputs          used by gather
        in all                357           181
        """,
    )


@pytest.mark.standard
def test_the_report_of_linen():
    network = linen.Sequential([linen.Dense(4), linen.relu, linen.Dense(1)])
    params = network.init(jax.random.key(0), jnp.zeros((5, 8)))

    def value_fn(params, x):
        return network.apply(params, x).mean(), {"aux": x}

    report = lejax.reduction_report(value_fn, params, jnp.zeros((5, 8)), has_aux=True)
    assert_report(
        report,
        """
        leaf                              shape   drawn                                  credit
        ['params']['layers_0']['bias']    (4,)    (4,)    used by reshape                by example
        ['params']['layers_0']['kernel']  (8, 4)  (5, 4)  5 rows meet 8 inputs           by example
        ['params']['layers_2']['bias']    (1,)    (1,)    used by reshape                by example
        ['params']['layers_2']['kernel']  (4, 1)  (4, 1)  its rows depend on parameters  by example
        in all                            41      29
        """,
    )
    assert (report.size, report.reduced_size) == (41, 29)


@pytest.mark.standard
def test_the_report_of_nnx():
    graph, params = nnx.split(nnx.Linear(8, 2, rngs=nnx.Rngs(0)), nnx.Param)

    def value_fn(params, x):
        return nnx.merge(graph, params)(x).mean()

    assert_report(
        lejax.reduction_report(value_fn, params, jnp.zeros((5, 8))),
        """
        leaf              shape   drawn                         credit
        ['bias'].value    (2,)    (2,)    used by reshape       by example
        ['kernel'].value  (8, 2)  (5, 2)  5 rows meet 8 inputs  by example
        in all            18      12
        """,
    )


def test_the_report_of_a_fallback():
    params = {"unused": jnp.zeros(3), "w": W}

    def value_fn(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"])) + jnp.sum(params["w"] * 2)

    assert_report(
        lejax.reduction_report(value_fn, params, X),
        """
        leaf        shape   drawn                             credit
        ['unused']  (3,)    (0,)    the loss does not use it  the loss does not use it
        ['w']       (8, 2)  (8, 2)  used by mul               used more than once
        in all      19      16
        """,
    )


def test_the_report_of_many_rows():
    """They are not fewer than the inputs: the leaf is drawn whole."""

    def value_fn(w, x):
        return jnp.mean(jnp.tanh(x @ w))

    assert_report(
        lejax.reduction_report(value_fn, W, jnp.ones((10, 8))),
        """
        leaf    shape   drawn                          credit
                (8, 2)  (8, 2)  10 rows meet 8 inputs  by example
        in all  16      16
        """,
    )


def test_the_report_refuses_what_the_samplers_refuse():
    with pytest.raises(TypeError, match="value_fn must return a scalar loss"):
        lejax.reduction_report(lambda w, x: x @ w, W, X)
    with pytest.raises(ValueError, match="params is None"):
        lejax.reduction_report(lambda w, x: jnp.mean(x @ w), None, X)
