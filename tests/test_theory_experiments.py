"""The theory experiments: the theorems at full strength, and every command."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import quadrature as independent_quadrature

from experiments import (
    figure_5_1,
    figures_2_1_2_2,
    quadrature,
    section_5_2,
    theorems_3_1_4_1,
    theorems_3_2_4_2,
)
from experiments.options import Options
from experiments.quadrature import LOSSES, POINTS, kl, log_gaussian, smooth

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
        (name, tau): theorems_3_2_4_2.measure(
            LOSSES[name], tau, theorems_3_2_4_2.STARTS
        )
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
        excess = theorems_3_2_4_2.majoriser(LOSSES[name], x, x, tau)
        excess = excess - at.local_entropy[:, None]
        divergence = kl(at.log_q, at.log_q[:, None])
        np.testing.assert_allclose(excess, divergence, atol=1e-11)
        excess = theorems_3_2_4_2.heat_majoriser(LOSSES[name], x, x, tau)
        excess = excess - at.heat[:, None]
        square = (x[:, None] - x) ** 2 / (2 * tau)
        np.testing.assert_allclose(excess, square, atol=1e-11)

    @pytest.mark.parametrize("beta", theorems_3_2_4_2.BETAS)
    def test_certificate(self, cases, beta):
        rates = theorems_3_2_4_2.RATES
        # The bound itself, from its words: -η(1 - η/2βτ)|∇F|² in βτ|∇F|².
        tau, eta, square = 0.7, rates * beta * 0.7, 1.9
        bound = -eta * (1 - eta / (2 * beta * tau)) * square / (beta * tau * square)
        np.testing.assert_allclose(theorems_3_2_4_2.bound(rates), bound, atol=1e-12)
        for case in cases.values():
            assert (case.changes[beta] <= bound[:, None] + 1e-8).all()
            assert (case.changes[beta][rates < 2] < 0).all()

    def test_beyond_the_certificate_f_rises(self, cases):
        rates = theorems_3_2_4_2.RATES
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


class TestFigures21And22:
    @pytest.mark.parametrize("name", figures_2_1_2_2.REGULARISATIONS)
    def test_values_and_gradients(self, name):
        """The gradient is that of the values, and small τ gives the loss back."""
        reg = figures_2_1_2_2.REGULARISATIONS[name]
        points = figures_2_1_2_2.POINTS
        g = reg.start(figures_2_1_2_2.on_grid(points, points))
        at, h = np.array([[0.3, -0.2]]), 1e-4
        (found,) = figures_2_1_2_2.exact(reg, g, at, 0.3)
        x, y = (at[0, i] + np.array([-h, 0, h]) for i in (0, 1))
        near = figures_2_1_2_2.surface(reg, g, x, y, 0.3)
        slopes = [near[2, 1] - near[0, 1], near[1, 2] - near[1, 0]]
        expected = [near[1, 1], *np.divide(slopes, 2 * h)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        # f is smooth on the scale √τ: F - f is τ(Δf - |∇f|²)/2 or τΔf/2.
        small = figures_2_1_2_2.exact(reg, g, at, 1e-3)[0, 0]
        assert abs(small - figures_2_1_2_2.loss(at)[0]) < 0.02

    def test_closed_form_of_the_sharp_well_under_heat(self):
        """A Gaussian well of width σ keeps σ²/(σ² + τ) of its depth in the plane."""
        reg = figures_2_1_2_2.REGULARISATIONS["heat"]
        points, well = figures_2_1_2_2.POINTS, figures_2_1_2_2.WELLS["sharp"]
        g = figures_2_1_2_2.on_grid(points, points)
        depth = figures_2_1_2_2.minimum(reg, g, well, 0.1).depth
        wide = figures_2_1_2_2.WELLS["wide"]
        variance = wide.width**2 + 0.1
        reach = (wide.centre[0] - well.centre[0]) ** 2 / (2 * variance)
        closed = well.depth * well.width**2 / (well.width**2 + 0.1)
        closed += wide.depth * wide.width**2 / variance * np.exp(-reach)
        assert np.isclose(depth, closed, rtol=1e-2)


class TestFigure51:
    def test_closed_forms(self):
        at = smooth(figure_5_1.LOSS, figure_5_1.X, figure_5_1.TAU)
        variance = figure_5_1.TAU / (1 + figure_5_1.TAU)
        mixture = sum(
            share * np.exp(log_gaussian(mode, variance))
            for share, mode in zip(figure_5_1.SHARES, figure_5_1.MODES, strict=True)
        )
        np.testing.assert_allclose(np.exp(at.log_q), mixture, atol=1e-12)
        slope = jax.vmap(jax.grad(figure_5_1.LOSS.value))(jnp.linspace(-5, 5, 11))
        np.testing.assert_allclose(
            figure_5_1.LOSS.slope(np.linspace(-5, 5, 11)), slope, atol=1e-5
        )

    def test_starts_go_to_different_modes(self):
        at = smooth(figure_5_1.LOSS, figure_5_1.X, figure_5_1.TAU)
        ends = figure_5_1.descend(figure_5_1.STARTS)
        assert len(np.unique(ends.round(4))) == 2
        for y in np.unique(ends.round(6)):
            here, *beside = kl(log_gaussian([y, y - 0.05, y + 0.05], 1.5), at.log_q)
            assert here < min(beside)
        mean, variance = figure_5_1.fit_variance(at.log_q, ends[0])
        assert np.isclose(mean, figure_5_1.MODES[0], atol=0.05)
        assert np.isclose(variance, 0.6, atol=0.05)


class TestSection52:
    def test_heat(self):
        """F^H from quadratures along the rotated axes, against those at one point."""
        x = np.linspace(-1, 1, section_5_2.DIMENSION)
        u = section_5_2.ROTATION @ x
        names = ["skewed"] * 5 + ["bimodal"] * 5
        total = sum(
            independent_quadrature(LOSSES[name].value, coordinate, 0.2).heat
            for name, coordinate in zip(names, u, strict=True)
        )
        assert np.isclose(section_5_2.heat(x), total, atol=1e-5)
        lost = section_5_2.heat(np.stack([x, np.full_like(x, np.nan)]))
        assert lost[1] == np.inf
        grid = section_5_2.heat(3 * np.random.default_rng(0).normal(size=(2000, 10)))
        assert (grid > section_5_2.least()).all()


COMMANDS = {
    "figures_2_1_2_2": ("figure_2_1.png", "figure_2_2.png"),
    "figure_5_1": ("figure_5_1.png",),
    "theorems_3_1_4_1": ("theorems_3_1_4_1.png",),
    "theorems_3_2_4_2": ("theorems_3_2_4_2.png",),
    "section_5_2": ("section_5_2.png",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name, capsys, tmp_path, steps, monkeypatch):
    # They are there already, at full strength.
    monkeypatch.setattr(theorems_3_2_4_2, "estimated_steps", lambda replicates: steps)
    globals()[name].main(Options(quick=True, output=tmp_path))
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / f"{name}.json").read_text())
    checks = record["checks"]
    assert len(checks) >= 5
    for check in checks:
        assert check.keys() == {"claim", "value", "relation", "bound", "holds"}
        assert check["claim"] in printed
        # Of three seeds nothing need be known of who is lower.
        assert check["holds"] or (name, "F^H at the end") == (name, check["claim"][:14])
    assert ("Finding: " in printed) == (name != "figure_5_1")
    for picture in COMMANDS[name]:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    if name == "figures_2_1_2_2":
        heat = record["traces"]["heat"]
        entropy = record["traces"]["local entropy"]
        # The finding: heat changes the order of the wells at smaller τ than F does.
        assert heat["order"] < 0.04 < 0.07 < entropy["order"]
    if name == "section_5_2":
        curves = list(record["curves"].values())
        assert {of["gradients"] for of in curves} == {4500}
        for of in curves:
            paper, chosen = np.array(of["paper"]), np.array(of["chosen"])
            assert paper.shape == chosen.shape == (3, 6)
            starts = [row[0] for row in curves[0]["chosen"]]
            assert paper[:, 0].tolist() == chosen[:, 0].tolist() == starts
            assert (np.minimum(paper, chosen) >= 0).all()
            assert paper[:, -1].mean() < paper[:, 0].mean()
