"""The inverse problems: their forward maps, their exact answers, the command."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.applications.gradient_free.runs import Setting
from experiments.applications.inverse import (
    comparison,
    darcy,
    linear_gaussian,
    lorenz,
    methods,
)
from experiments.applications.inverse.comparison import Config
from experiments.applications.inverse.methods import KALMAN
from experiments.common import results

pytestmark = pytest.mark.standard


def test_darcy_of_a_constant_permeability():
    """By its Fourier series: -aΔp = 1 has p = Σ 16 sin sin / (a π⁴ jk (j² + k²))."""
    odd = np.arange(1, 200, 2)
    middles = (np.arange(darcy.CELLS) + 0.5) / darcy.CELLS
    waves = np.sin(np.pi * np.outer(odd, middles))
    weights = 16 / (np.pi**4 * np.outer(odd, odd) * (odd[:, None] ** 2 + odd**2))
    exact = waves.T @ weights @ waves / 3
    found = darcy.pressure(jnp.full((darcy.CELLS, darcy.CELLS), jnp.log(3.0)))
    # Of second order in cells of 1/64; at the border p is small.
    np.testing.assert_allclose(found, exact, atol=2e-4 * exact.max() * 3)


def test_darcy_solves_its_equations():
    """Dense, on the same grid, with a permeability that is not constant."""
    kappa = jnp.tensordot(
        jax.random.normal(jax.random.key(0), (darcy.MODES**2,)),
        jnp.asarray(darcy.modes(), jnp.float32),
        1,
    )
    a, n = np.exp(np.asarray(kappa, float)), darcy.CELLS
    matrix = np.zeros((n * n, n * n))
    for i in range(n):
        for j in range(n):
            for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                inside = 0 <= k < n and 0 <= m < n
                face = 2 * a[i, j] * a[k, m] / (a[i, j] + a[k, m]) if inside else 0
                matrix[i * n + j, i * n + j] += face if inside else 2 * a[i, j]
                if inside:
                    matrix[i * n + j, k * n + m] -= face
    exact = np.linalg.solve(matrix, np.full(n * n, 1 / n**2)).reshape(n, n)
    found = darcy.pressure(kappa)
    np.testing.assert_allclose(found, exact, atol=1e-4 * exact.max())


def test_the_prior_of_the_permeability():
    """Of variance 1, in the mean over the square."""
    np.testing.assert_allclose((darcy.modes() ** 2).sum(0).mean(), 1, rtol=1e-3)


def test_lorenz_balances():
    """d<z>/dt = 0 and d<x²>/dt = 0: <xy> = b<z> and <x²> = <xy>, but for the ends."""
    problem = lorenz.problem()
    u = problem.truth(jax.random.key(0))
    np.testing.assert_allclose(problem.field(u), lorenz.TRUTH, rtol=1e-5)
    x, _, z, xx, _, _, xy, *_ = np.asarray(problem.forward(u))
    assert abs(x) < 5
    np.testing.assert_allclose(xy, lorenz.TRUTH[2] * z, rtol=0.05)
    np.testing.assert_allclose(xx, xy, rtol=0.1)
    # The errors are those of the observations, and of the forward map's own window.
    keys = jax.random.split(jax.random.key(1), 50)
    y = jax.jit(jax.vmap(lambda key: problem.observe(key, u)))(keys)
    root = np.linalg.cholesky(problem.covariance)
    whitened = np.linalg.solve(root, (y - problem.forward(u)).T)
    assert 0.5 < (whitened**2).mean() < 1.5


def test_the_posterior_in_closed_form():
    """A minimum, and the inverse of the Hessian."""
    problem = linear_gaussian.problem()
    truth = problem.truth(jax.random.key(0))
    y = problem.observe(jax.random.key(1), truth)
    assert problem.exact is not None
    mean, covariance = (jnp.asarray(x, jnp.float32) for x in problem.exact(y))
    loss = jax.grad(lambda u: problem.loss(u, y))
    assert jnp.linalg.norm(loss(mean)) < 1e-3 * jnp.linalg.norm(loss(0 * mean))
    directions = jax.random.normal(jax.random.key(2), (5, problem.dimensions))
    for v in directions:
        bent = jax.jvp(loss, (mean,), (covariance @ v,))[1]
        np.testing.assert_allclose(bent, v, atol=0.05)


def test_the_ensemble_finds_a_posterior():
    """Of a linear map, with more members than observations."""
    found = methods.run("linear_gaussian", 4000, KALMAN, Setting(400, {"pace": 1.0}), 0)
    assert 1000 < found.solves[-1] <= 4000
    _, y = methods.instance("linear_gaussian", 0)
    at_prior = methods.problem_of("linear_gaussian").loss(jnp.zeros(1000), y)
    assert found.losses[-1] < 0.01 * at_prior
    assert found.deviation is not None


@pytest.mark.slow
def test_quickly_and_again(tmp_path, capsys, monkeypatch):
    few = ("local entropy", "gaussian, full", "CMA_ES", KALMAN, "Adam, gradient")
    methods_of = methods.methods_of

    def some(problem):
        return {k: v for k, v in methods_of(problem).items() if k in few}

    monkeypatch.setattr(comparison, "methods_of", some)
    monkeypatch.setattr(methods, "POPULATIONS", (20,))
    config = Config("lorenz", solves=60, trials=1, seeds=2, output=tmp_path)
    comparison.main(config)
    said = capsys.readouterr().out
    path = tmp_path / "inverse_lorenz.json"
    record = json.loads(path.read_text())
    assert set(record["runs"]) == set(few)
    for name, runs in record["runs"].items():
        assert f"| {name} |" in said
        assert all(of["solves"][-1] <= 60 for of in runs.values())
        assert ("covered" in runs["0"]) == ("gaussian" in name or name == KALMAN)
    assert (tmp_path / "inverse_lorenz.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(comparison, "run", None)  # all is there
    comparison.main(config)
    assert results.read(path) == record
