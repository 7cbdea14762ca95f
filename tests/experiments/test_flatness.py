"""Measures of flatness against closed forms, and their comparison in quick form."""

from __future__ import annotations

import functools
import json

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lejax
from experiments.applications.flatness import comparison, contenders, contest, sharpness
from experiments.common import models

pytestmark = pytest.mark.standard
CURVATURES = jnp.array([5.0, 2.0, 1.0, 0.5, 0.0])


def quadratic(x, batch=None):
    """½ xᵀAx of a nested pytree, A diagonal."""
    del batch
    flat = jnp.concatenate([x["a"].ravel(), x["b"]])
    return jnp.sum(CURVATURES * flat**2) / 2


POINT = {"a": jnp.array([[1.0], [-2.0]]), "b": jnp.array([0.5, 3.0, 1.0])}
FLAT = jnp.array([1.0, -2.0, 0.5, 3.0, 1.0])


@pytest.fixture(scope="module")
def network():
    """A small network's loss, a point where it is curved, and the dense Hessian."""
    made = models.dense_classifier((6, 4, 3), seed=0)
    images = jax.random.normal(jax.random.key(1), (30, 6))
    labels = jnp.argmax(images[:, :3] + images[:, 3:] ** 2, axis=1)
    loss = functools.partial(made.loss, batch=(images, labels))
    gradient = jax.grad(loss)
    params = jax.lax.fori_loop(
        0, 100, lambda _, x: optax.tree.add_scale(x, -0.5, gradient(x)), made.params
    )
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = jax.hessian(lambda x: loss(unravel(x)))(flat)
    return loss, params, np.asarray(dense, float)


@pytest.mark.slow
def test_leading_eigenvalues_are_those_of_the_dense_hessian(network):
    loss, params, dense = network
    expected = np.linalg.eigvalsh(dense)[::-1][:5]
    found = sharpness.leading_eigenvalues(loss, params, jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # Lanczos knows the leading ones first, and no eigenvalue is above them.
    early = sharpness.leading_eigenvalues(loss, params, jax.random.key(0), 1, 8)
    assert 0.9 * expected[0] < early[0] < 1.0001 * expected[0]


@pytest.mark.slow
def test_trace_is_that_of_the_dense_hessian(network):
    loss, params, dense = network
    measure = functools.partial(sharpness.trace, loss, params, draws=50)
    keys = jax.random.split(jax.random.key(2), 20)
    found = jax.vmap(lambda key: measure(key=key))(keys)
    np.testing.assert_array_less(
        abs(found.mean - np.trace(dense)), 4.5 * found.standard_error
    )
    # Signs leave the variance 2 Σ_{i≠j} H_ij² of a draw, and no more.
    off_diagonal = dense - np.diag(np.diag(dense))
    expected = np.sqrt(2 * np.sum(off_diagonal**2) / 50)
    np.testing.assert_allclose(found.standard_error.mean(), expected, rtol=0.1)
    np.testing.assert_allclose(found.mean.std(), expected, rtol=0.5)


@pytest.mark.parametrize("tau", [0.02, 0.3])
def test_excess_of_a_quadratic(tau):
    """½ xᵀA(I + τA)⁻¹x + ½ log det(I + τA) - f of F_τ; τ/2 tr A of F^H."""
    value = quadratic(POINT)
    shrunk = CURVATURES / (1 + tau * CURVATURES)
    entropy = jnp.sum(shrunk * FLAT**2 + jnp.log1p(tau * CURVATURES)) / 2 - value
    expected = {
        lejax.importance(20_000): entropy,
        lejax.score_function(20_000): tau / 2 * CURVATURES.sum(),
        lejax.pathwise(20_000): tau / 2 * CURVATURES.sum(),
    }
    for sampler, excess in expected.items():
        found = sharpness.excess(
            quadratic, POINT, None, jax.random.key(0), sampler, tau
        )
        assert abs(found.mean - excess) < 4 * found.standard_error
        # The error is of use: small against what is measured.
        assert 0 < found.standard_error < 0.1 * abs(excess)


@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_sam_sharpness_of_a_quadratic(rho):
    """One step along Ax/|Ax|: ρ |Ax| + ½ ρ² (Ax)ᵀA(Ax)/|Ax|²."""
    gradient = CURVATURES * FLAT
    squared = jnp.sum(gradient**2)
    expected = rho * jnp.sqrt(squared)
    expected += rho**2 / 2 * jnp.sum(CURVATURES * gradient**2) / squared
    found = sharpness.sam_sharpness(quadratic, POINT, rho)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The maximum over the ball, here of many directions, is hardly above it.
    steps = jax.random.normal(jax.random.key(0), (10_000, 5))
    steps *= rho / jnp.linalg.norm(steps, axis=1, keepdims=True)
    losses = jnp.sum(CURVATURES * (FLAT + steps) ** 2, axis=1) / 2
    assert 0.99 * (losses.max() - quadratic(POINT)) < found
    at_rest = sharpness.sam_sharpness(quadratic, optax.tree.zeros_like(POINT), rho)
    assert at_rest == 0


@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_under_noise(sigma):
    """Of a quadratic f + σ²/2 tr A on average, with deviation |σ Ax| for small σ."""
    draws = 4000
    found = sharpness.under_noise(quadratic, POINT, jax.random.key(0), sigma, draws)
    expected = quadratic(POINT) + sigma**2 / 2 * CURVATURES.sum()
    variance = sigma**2 * jnp.sum((CURVATURES * FLAT) ** 2)
    variance += sigma**4 / 2 * jnp.sum(CURVATURES**2)
    assert abs(found - expected) < 4 * jnp.sqrt(variance / draws)


def one_update(make, scale, batch):
    """The first update of a contender at rate .1, of a loss that is not quadratic."""
    params = jnp.array([1.0, -2.0])
    tx = make(lambda k: 0.1, scale, jax.random.key(0))

    def loss(x, batch):
        return jnp.mean(jnp.cosh(batch @ x))

    updates, _ = tx.update(
        jnp.zeros(2), tx.init(params), params, value_fn=loss, batch=batch
    )
    return updates, jax.grad(loss), params


def test_sam_takes_the_gradient_where_the_loss_is_higher():
    batch = jnp.array([[1.0, 0.5], [0.2, -0.3]])
    found, gradient, x = one_update(contenders.sam, 0.2, batch)
    at_x = gradient(x, batch)
    above = x + 0.2 * at_x / jnp.linalg.norm(at_x)
    np.testing.assert_allclose(found, -0.1 * gradient(above, batch), rtol=1e-5)


def test_cosine():
    schedule = contenders.cosine(3.0, 200)
    expected = optax.cosine_decay_schedule(3.0, 200)
    for k in (0, 1, 77, 200, 300):
        np.testing.assert_allclose(schedule(k), expected(k), atol=1e-6)


def test_blocks_hold_all_batches_in_order():
    rows = np.arange(120 * 5).reshape(120, 5)
    here = contest.Setting(contest.Config(), contest.Sizes(), None, None, None)
    one, inner = (contest.Program(None, None, batches) for batches in (1, 20))
    assert contest.in_blocks(rows, one, here).shape == (3, 40, 5)
    blocks = contest.in_blocks(rows, inner, here)
    assert blocks.shape == (3, 2, 20, 5)
    np.testing.assert_array_equal(blocks.ravel(), rows.ravel())
    # Epochs are equal where an update takes several batches, too.
    assert contest.number_of_updates(1200, one, here) == 1200
    assert contest.number_of_updates(1200, inner, here) == 60


FEW = ("momentum", "SAM", "Entropy-SGD", "pathwise")


@pytest.mark.slow
def test_the_comparison_in_quick_form(tmp_path, monkeypatch, capsys):
    every = contenders.contenders()
    samplers = {"importance", "sgld", "robbins_monro", "pathwise", "score_function"}
    samplers |= {"importance_by_example"}
    assert every.keys() == samplers | {"SGD", "momentum", "Adam", "SAM", "Entropy-SGD"}
    monkeypatch.setattr(
        comparison,
        "contenders",
        lambda *sizes: {
            name: c for name, c in contenders.contenders(*sizes).items() if name in FEW
        },
    )
    config = contest.Config(
        data="digits", seeds=2, seconds=0.05, quick=True, output=tmp_path
    )
    comparison.main(config)
    printed = capsys.readouterr().out
    assert printed.count("| Entropy-SGD |") == 2
    path = tmp_path / "flatness.json"
    record = json.loads(path.read_text())
    for budget, found in record["runs"].items():
        assert list(found) == list(FEW), budget
        for of_name in found.values():
            assert len(of_name) == 2
            assert of_name[0]["accuracy"] != of_name[1]["accuracy"]
            assert all(0 <= a <= 1 for run in of_name for a in run["accuracy"])
    epochs = {n: of[0]["updates"] for n, of in record["runs"]["equal epochs"].items()}
    assert epochs == {"momentum": 20, "SAM": 20, "Entropy-SGD": 1, "pathwise": 20}
    assert (tmp_path / "flatness.png").read_bytes().startswith(b"\x89PNG")
    # What is there is not computed again; what is missing is, and alone.
    before = path.read_bytes()
    monkeypatch.setattr(comparison, "seconds_per_update", None)
    trained, calls = comparison.trained, []

    def counted(*args, **options):
        calls.append(options.get("updates"))
        return trained(*args, **options)

    monkeypatch.setattr(comparison, "trained", counted)
    comparison.main(config)
    assert not calls
    assert path.read_bytes() == before
    del record["runs"]["equal epochs"]["SAM"][1]
    path.write_text(json.dumps(record))
    comparison.main(config)
    assert calls == [20]
    again = json.loads(path.read_text())["runs"]["equal epochs"]["SAM"][1]
    first = json.loads(before)["runs"]["equal epochs"]["SAM"][1]
    assert again | {"seconds": 0} == first | {"seconds": 0}


@pytest.mark.slow
def test_no_test_image_is_used_for_choices(monkeypatch):
    digits = contest.setting(contest.Config(data="digits", quick=True))
    spoiled = digits._replace(
        dataset=digits.dataset._replace(test_images=None, test_labels=None)
    )
    of = contest.program(contenders.contenders()["momentum"], digits)
    seen = []
    trained = contest.trained

    def watched(of, here, size, *args):
        seen.append(size)
        return trained(of, here, size, *args)

    monkeypatch.setattr(comparison, "trained", watched)
    found = comparison.validated(of, spoiled, 0.1, 0.0)
    assert 0 <= found["accuracy"] <= 1
    assert seen == [len(digits.dataset.train_labels) * 5 // 6]
