"""Theorems 3.1, 3.2, 4.1 and 4.2 at full strength, and the quadrature beneath them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import quadrature as independent_quadrature

from experiments.common import quadrature
from experiments.common.quadrature import LOSSES, POINTS, kl, log_gaussian, smooth
from experiments.paper import descent, theorems_3_1_4_1, theorems_3_2_4_2

pytestmark = pytest.mark.standard
CASES = [(name, tau) for name in LOSSES for tau in (0.2, 1.5)]


def assert_all_hold(checks):
    assert [check.claim for check in checks if not check.holds] == []


@pytest.fixture(scope="module")
def measured():
    return {
        theorem: {
            (name, x, tau): theorems_3_1_4_1.measure(theorem, LOSSES[name], x, tau)
            for name in LOSSES
            for tau in theorems_3_1_4_1.TAUS
            for x in theorems_3_1_4_1.CENTRES
        }
        for theorem in theorems_3_1_4_1.THEOREMS
    }


@pytest.fixture(scope="module")
def cases():
    return {
        (name, tau): descent.measure(LOSSES[name], tau, descent.STARTS)
        for name, tau in CASES
    }


@pytest.fixture(scope="module")
def steps():
    return theorems_3_2_4_2.estimated_steps(64)


class TestQuadrature:
    @pytest.mark.parametrize("name", LOSSES)
    def test_slopes(self, name):
        x = np.linspace(-5, 5, 101)
        slope = jax.vmap(jax.grad(LOSSES[name].value))(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(LOSSES[name].slope(x), slope, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("name", "tau"), CASES)
    @pytest.mark.parametrize("beta", [1.0, 2.5])
    def test_smoothings(self, name, tau, beta):
        """As by the other quadrature, over the noise and with JAX's derivatives."""
        at = smooth(LOSSES[name], [0.4, -1.2], tau, beta)
        for i, x in enumerate([0.4, -1.2]):
            truth = independent_quadrature(LOSSES[name].value, x, tau, beta)
            assert np.isclose(at.mean[i] - x, truth.displacement, atol=1e-9)
            assert np.isclose(at.local_entropy[i], truth.free_energy, atol=1e-9)
            gradient = -truth.displacement / (beta * tau)
            assert np.isclose(at.gradient[i], gradient, atol=1e-8)
            assert np.isclose(at.heat[i], truth.heat, atol=1e-9)
            assert np.isclose(at.heat_gradient[i], truth.heat_gradient, atol=1e-9)

    def test_divergence_of_gaussians(self):
        p, q = log_gaussian(0.3, 0.5), log_gaussian(-0.4, 1.3)
        closed = (np.log(1.3 / 0.5) + (0.5 + 0.49) / 1.3 - 1) / 2
        assert np.isclose(kl(p, q), closed, atol=1e-12)
        assert not np.isclose(kl(q, p), closed, atol=1e-2)

    def test_convolution(self):
        """N(x, τ) on a grid has mass 1, mean x and variance τ."""
        (weights,) = quadrature.kernel([0.3], POINTS, 1.5)
        moments = [weights @ (POINTS - 0.3) ** k for k in range(3)]
        np.testing.assert_allclose(moments, [1, 0, 1.5], atol=1e-12)

    def test_checks_do_not_pass_what_is_no_number(self):
        assert quadrature.at_most("", 1.0, 1.0).holds
        assert quadrature.at_least("", 1.0, 1.0).holds
        assert not quadrature.at_most("", 1.1, 1.0).holds
        assert not quadrature.at_least("", 0.9, 1.0).holds
        assert not quadrature.at_most("", np.nan, 1.0).holds
        assert not quadrature.at_least("", np.nan, 1.0).holds

    def test_failures_are_printed(self, capsys):
        found = [quadrature.at_most("a", 2, 1), quadrature.at_least("b", 2, 1)]
        record = quadrature.report(found)
        assert [check["holds"] for check in record] == [False, True]
        printed = capsys.readouterr().out
        assert "a: 2 <= 1, DOES NOT HOLD" in printed
        assert "1 of 2 checks hold" in printed


@pytest.mark.slow
@pytest.mark.parametrize("theorem", theorems_3_1_4_1.THEOREMS)
class TestTheorems31And41:
    def test_checks(self, measured, theorem):
        assert_all_hold(theorems_3_1_4_1.checks(theorem, measured[theorem]))

    def test_both_sides(self, measured, theorem):
        """Against the other quadrature, at q of (2.6) and around it."""
        bracket = theorems_3_1_4_1.THEOREMS[theorem].bracket
        for name, x, tau in measured[theorem]:
            truth = independent_quadrature(LOSSES[name].value, x, tau)
            least = {"3.1": truth.free_energy, "4.1": truth.heat}[theorem]
            f, at = LOSSES[name].value(POINTS), smooth(LOSSES[name], x, tau)
            assert abs(bracket(f, at, at.log_q) - least) < 1e-6
            densities = theorems_3_1_4_1.perturbed(at.log_q, x, tau)
            assert set(densities) == {"tilt", "bump", "shift", "power", "mixture"}
            for density in densities.values():
                np.testing.assert_allclose(quadrature.integrate(np.exp(density)), 1)
                assert (bracket(f, at, density) > least).all()

    def test_rises_grow_with_the_perturbation(self, measured, theorem):
        sizes = theorems_3_1_4_1.SIZES
        for of in measured[theorem].values():
            for rise in of.rises.values():
                up = rise[sizes[-len(rise) :] > 0]
                assert (np.diff(up) > 0).all()
                assert up[-1] > 0.01

    def test_the_density_that_attains_it(self, measured, theorem):
        """It is exp(-f) φ in both theorems: an optimiser finds it, and no other."""
        for of in measured[theorem].values():
            assert of.blind["exp(-f) φ"] < 1e-4
            assert min(of.blind["φ"], of.blind["exp(+f) φ"]) > 0.01
            assert min(of.others.values()) > 1e-3


@pytest.mark.slow
class TestTheorems32And42:
    def test_checks(self, cases, steps):
        found = theorems_3_2_4_2.checks(cases, steps)
        assert_all_hold(found)
        assert sum("counter-example" in check.claim for check in found) == 2

    @pytest.mark.parametrize(("name", "tau"), CASES)
    def test_neither_regularisation_rises(self, cases, name, tau):
        for run in cases[name, tau].runs.values():
            assert run.x.shape[1] >= 20
            assert (np.diff(run.objective, axis=0) <= 1e-12).all()
            assert run.objective[0].max() - run.objective[-1].max() > 0.1
            moving = np.abs(run.gradient[:-1]) > 1e-4
            assert (np.diff(run.objective, axis=0)[moving] < 0).all()

    @pytest.mark.parametrize(("name", "tau"), CASES)
    def test_updates(self, cases, name, tau):
        """x - τ∇F(x), and the least of F^H(y) + |y - x|²/2τ over a grid."""
        entropy, heat = cases[name, tau].runs.values()
        gradient = entropy.gradient[0]
        np.testing.assert_allclose(entropy.x[1], entropy.x[0] - tau * gradient)
        grid = np.linspace(-6, 6, 1001)
        proximal = smooth(LOSSES[name], grid, tau).heat[:, None]
        proximal = proximal + (grid[:, None] - heat.x[0]) ** 2 / (2 * tau)
        at_update = heat.objective[1] + (heat.x[1] - heat.x[0]) ** 2 / (2 * tau)
        assert (at_update <= proximal.min(0)).all()

    @pytest.mark.parametrize(("name", "tau"), CASES)
    def test_majorisers(self, name, tau):
        """A and A^H exceed F and F^H by divergences that vanish at x~ = x alone."""
        x = np.array([-2.1, -0.3, 0.4, 1.7])
        at = smooth(LOSSES[name], x, tau)
        excess = descent.majoriser(LOSSES[name], x, x, tau)
        excess = excess - at.local_entropy[:, None]
        divergence = kl(at.log_q, at.log_q[:, None])
        np.testing.assert_allclose(excess, divergence, atol=1e-11)
        excess = descent.heat_majoriser(LOSSES[name], x, x, tau)
        excess = excess - at.heat[:, None]
        square = (x[:, None] - x) ** 2 / (2 * tau)
        np.testing.assert_allclose(excess, square, atol=1e-11)

    @pytest.mark.parametrize("beta", descent.BETAS)
    def test_certificate(self, cases, beta):
        rates = descent.RATES
        # The bound itself, from its words: -η(1 - η/2βτ)|∇F|² in βτ|∇F|².
        tau, eta, square = 0.7, rates * beta * 0.7, 1.9
        bound = -eta * (1 - eta / (2 * beta * tau)) * square / (beta * tau * square)
        np.testing.assert_allclose(descent.bound(rates), bound, atol=1e-12)
        for case in cases.values():
            assert (case.changes[beta] <= bound[:, None] + 1e-8).all()
            assert (case.changes[beta][rates < 2] < 0).all()

    def test_beyond_the_certificate_f_rises(self, cases):
        rates = descent.RATES
        rises = [case.changes[3.0][rates > 2].max() for case in cases.values()]
        assert max(rises) > 1

    def test_a_zero_of_h_is_not_enough(self, cases):
        name, tau = "many wells", 0.2
        zero = cases[name, tau].zero
        at, loss = smooth(LOSSES[name], [zero.y, zero.x], tau), LOSSES[name]
        assert abs(zero.y - zero.x + tau * at.heat_gradient[0]) < 1e-9
        above = smooth(loss, zero.y + 1e-3, tau).heat_gradient
        assert zero.y + 1e-3 - zero.x + tau * above > 0  # stable
        assert np.isclose(zero.rise, at.heat[0] - at.heat[1])
        assert zero.rise > 1

    def test_estimated_steps(self, steps):
        assert len(steps) == 24
        for step in steps:
            assert abs(step["mean"] - step["exact"]) < 4 * step["standard error"]
            assert step["standard error"] < 0.02
