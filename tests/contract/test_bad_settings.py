"""Bad settings: an error that names the argument, the value and the mend."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from test_bad_input import KEY, X, loss, transformation

import lejax


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "ten", None, np.float32(3)])
def test_counts(bad):
    makers = [
        ("num_samples", lejax.importance),
        ("num_samples", lejax.pathwise),
        ("num_samples", lejax.score_function),
        ("num_samples", lambda n: lejax.robbins_monro(5, n, 0.1)),
        ("num_steps", lambda n: lejax.robbins_monro(n, 5, 0.1)),
        ("num_steps", lambda n: lejax.sgld(n, 0.1)),
    ]
    for name, make in makers:
        with pytest.raises(ValueError, match=rf"{name} must be an integer.*{name}="):
            make(bad)


def test_chunk_size():
    for make in (lejax.importance, lejax.pathwise, lejax.score_function):
        with pytest.raises(ValueError, match="chunk_size must be an integer"):
            make(10, chunk_size=0)
    assert lejax.importance(np.int64(3)).name == "importance"


def test_signs_per_draw():
    with pytest.raises(ValueError, match="signs_per_draw must be an integer"):
        lejax.importance(10, signs_per_draw=0)
    with pytest.raises(ValueError, match="signs_per_draw must be at most 32, got 33"):
        lejax.importance(10, signs_per_draw=33)


def test_averaging():
    with pytest.raises(ValueError, match=r"averaging must be at most 1, got 1.5.*0.75"):
        lejax.sgld(4, 0.1, averaging=1.5)


def test_an_inner_chain_that_diverges():
    with pytest.raises(ValueError, match=r"inner_learning_rate .* got 0.2.*raise tau"):
        lejax.entropy_sgd(0.1, 0.1, key=KEY, inner_learning_rate=0.2)


def test_score_function_needs_two_draws():
    with pytest.raises(
        ValueError, match="num_samples must be an integer of at least 2"
    ):
        lejax.score_function(1)


@pytest.mark.parametrize("bad", [0.0, -0.1, jnp.nan, jnp.inf, "0.1", None, 0, True])
def test_positive_numbers(bad):
    """τ, β, step sizes and variances, wherever they are given."""
    sampler, heat = lejax.importance(4), lejax.pathwise(4)
    calls = {
        "tau": [
            lambda: transformation(tau=bad),
            lambda: transformation(tau=lambda k: bad),
            lambda: lejax.heat(heat, bad, key=KEY),
            lambda: lejax.entropy_sgd(0.1, bad, key=KEY),
            lambda: lejax.step_fn(loss, sampler, bad),
            lambda: lejax.value_and_grad(loss, sampler, bad),
            lambda: sampler.estimate(KEY, (), X, value_fn=loss, tau=bad),
        ],
        "beta": [
            lambda: transformation(beta=bad),
            lambda: lejax.step_fn(loss, sampler, 0.1, beta=bad),
            lambda: sampler.estimate(KEY, (), X, value_fn=loss, tau=0.1, beta=bad),
        ],
        "step_size": [
            lambda: lejax.sgld(4, bad),
            lambda: lejax.sgld(4, lambda j: bad),
            lambda: lejax.robbins_monro(4, 4, bad),
        ],
        "temperature": [lambda: lejax.sgld(4, 0.1, temperature=bad)],
        "init_value": [
            lambda: lejax.scoping(bad, 0.1),
            lambda: lejax.target_share(0.5, bad),
        ],
        "gain": [lambda: lejax.target_share(0.5, 0.1, gain=bad)],
        "max_change": [lambda: lejax.target_share(0.5, 0.1, max_change=bad)],
        "max_ratio": [lambda: lejax.target_share(0.5, 0.1, max_ratio=bad)],
        "inner_learning_rate": [
            lambda: lejax.entropy_sgd(0.1, 1.0, key=KEY, inner_learning_rate=bad)
        ],
        "noise": [lambda: lejax.entropy_sgd(0.1, 1.0, key=KEY, noise=bad)],
    }
    if bad is not None:
        calls["averaging"] = [lambda: lejax.sgld(4, 0.1, averaging=bad)]
        calls["smoothing"] = [lambda: lejax.robbins_monro(4, 4, 0.1, smoothing=bad)]
    for name, makers in calls.items():
        for make in makers:
            with pytest.raises(ValueError, match=rf"{name}(\(0\))? must be a positive"):
                make()


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 2, np.nan, "half", True])
def test_shares(bad):
    for name, make in (
        ("share", lambda: lejax.beta_for_share(X, bad)),
        ("share", lambda: lejax.target_share(bad, 0.1)),
        ("beta_share", lambda: lejax.importance(4, beta_share=bad)),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be between 0 and 1, got"):
            make()
    with pytest.raises(ValueError, match=r"^share\(0\) must be between 0 and 1, got"):
        lejax.target_share(lambda k: bad, 0.1)


@pytest.mark.parametrize("bad", ["rank", True, 1.0, jnp.ones(3)])
def test_shapings(bad):
    message = r"shaping must be 'ranks' or 'standardized', got .*; leave it out for"
    with pytest.raises(ValueError, match=message):
        lejax.importance(4, shaping=bad)


@pytest.mark.parametrize("options", [{"credit": True}, {"beta_share": 0.5}])
def test_what_shaping_cannot_go_with(options):
    (name,) = options
    message = rf"{name}=.* with shaping='ranks': shaped losses .*leave one of them out"
    with pytest.raises(ValueError, match=message):
        lejax.importance(4, shaping="ranks", **options)


def test_the_numbers_of_a_controller():
    with pytest.raises(ValueError, match=r"gain must be at most 1, got 1.5.*gain=0.1"):
        lejax.target_share(0.5, 0.1, gain=1.5)
    for name in ("max_change", "max_ratio"):
        with pytest.raises(ValueError, match=rf"{name} must be above 1, got 1.0"):
            lejax.target_share(0.5, 0.1, **{name: 1.0})


def test_a_share_that_no_controller_can_follow():
    """Chains and heat tell none, nor do shaped losses, and adapted β follows itself."""
    tau = lejax.target_share(0.5, 0.1)
    adapts = lejax.importance(4, beta_share=0.5)
    shaped = lejax.importance(4, shaping="ranks")
    message = "a sampler whose share of effective.*{}; pass a number or a schedule"
    for name, make in (
        ("sgld", lambda: transformation(sampler=lejax.sgld(4, 0.1), tau=tau)),
        ("importance", lambda: transformation(sampler=adapts, tau=tau)),
        ("importance", lambda: transformation(sampler=shaped, tau=tau)),
        ("pathwise", lambda: lejax.heat(lejax.pathwise(4), tau, key=KEY)),
        (
            "importance",
            lambda: lejax.minimize(loss, X, tau=tau, key=KEY, sampler=adapts),
        ),
    ):
        with pytest.raises(ValueError, match=message.format(name)):
            make()
    for make in (lejax.step_fn, lejax.value_and_grad):
        with pytest.raises(ValueError, match="tau must be a positive finite number"):
            make(loss, lejax.importance(4), tau)


@pytest.mark.parametrize("bad", [-1, -2.0, np.inf, np.nan, "fast"])
def test_rate_of_scoping(bad):
    with pytest.raises(ValueError, match="rate must be a finite number above -1"):
        lejax.scoping(1.0, bad)


def test_a_langevin_chain_that_diverges():
    sampler = lejax.sgld(10, 0.5)
    for make in (
        lambda: transformation(sampler=sampler, tau=0.1),
        lambda: transformation(sampler=sampler, tau=lejax.scoping(0.1, 0.01)),
        lambda: lejax.step_fn(loss, sampler, 0.1)(X, KEY),
    ):
        with pytest.raises(ValueError, match=r"step_size starts at 0.5.*raise tau"):
            make()
    transformation(sampler=sampler, tau=0.13)


def test_a_sampler_of_the_other_regularisation():
    with pytest.raises(ValueError, match=r"sampler=robbins_monro.*lejax\.heat"):
        transformation(sampler=lejax.robbins_monro(4, 4, 0.1))
    with pytest.raises(ValueError, match=r"sampler=importance.*lejax\.local_entropy"):
        lejax.heat(lejax.importance(4), 0.1, key=KEY)
    for not_one in (lejax.importance, None):
        with pytest.raises(TypeError, match="sampler must be a lejax sampler"):
            transformation(sampler=not_one)
        with pytest.raises(TypeError, match="sampler must be a lejax sampler"):
            lejax.step_fn(loss, not_one, 0.1)
    with pytest.raises(ValueError, match="beta must be 1 for pathwise"):
        lejax.step_fn(loss, lejax.pathwise(4), 0.1, beta=2.0)
