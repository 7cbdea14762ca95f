"""Stochastic gradient Langevin dynamics for local entropy: Algorithm 3."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lejax._estimators.plan import chunk_limit
from lejax._info import make_info
from lejax._internal.checks import (
    at_most_one,
    counts_of,
    first_value,
    positive,
    positive_or_schedule,
)
from lejax._internal.mesh_axes import is_bound, member, members
from lejax._internal.trees import compute_dtype, widen
from lejax._internal.types import PyTree, Scalar, ScalarOrSchedule
from lejax._samplers.langevin import make_moves, run_chain
from lejax._samplers.sampler import Estimate, Given, ReducedSampler, Traits
from lejax._spaces.space import Space


class SGLDState(NamedTuple):
    """The last point of each chain of `sgld`, for the next warm start.

    It is part of the optimizer state with `warm_start=True`. You use it directly only
    if you call `Sampler.estimate`.

    Attributes:
        position: x_J, in the shapes of the parameters and at least float32. With
            several chains or an `axis_name`, a leading axis holds the chains of this
            member.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.sgld(50, 0.1, num_chains=2, warm_start=True)
        >>> state = sampler.init(jnp.ones(3))
        >>> _, state, _ = sampler.estimate(
        ...     jax.random.key(0), state, jnp.ones(3), value_fn=jnp.sum, tau=1.0
        ... )
        >>> print(state.position.shape)
        (2, 3)
    """

    position: PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class sgld(ReducedSampler):
    """Langevin dynamics for local entropy: chains of gradient steps (Algorithm 3).

    Use it if the loss has a gradient and importance weights degenerate, at large β or
    in many dimensions. Do not use it without a useful gradient, or if you need the
    smoothed loss or error bars; see `importance`. It is the inner loop of Entropy-SGD;
    the whole optimizer is `entropy_sgd`.

        x_{j+1} = x_j - (ε_j/2) [β∇f(x_j) + (x_j - x)/τ] + η_j,   η_j ~ N(0, T_j ε_j I),
        E_q[X] ≈ Σ_j ε_j x_j / Σ_j ε_j   over x_1, …, x_J,

    for q ∝ exp(-βf(x') - |x' - x|²/2τ). The chain starts at x or, with `warm_start`, at
    the end of the previous chain. A move to a point whose loss or gradient is not
    finite is refused and counted: the chain stays. If the start of a chain is refused,
    it starts at x, one point later.

    A short chain returns part of the step. From x and for a constant gradient, it is
    the share 1 - A, where

        A = Σ_j ε_j R_j / Σ_j ε_j,   R_j = Π_{i<j} (1 - ε_i/2τ),

    so a learning rate η behind it acts as (1 - A)η. 1 - A is .97 for the paper's J =
    1000, ε_j = 1/(1000 + j) and τ = .01, and .02 for J = 10 and ε = τ/100. This is not
    corrected: raise the learning rate, or J ε.

    Args:
        num_steps: J ≥ 1, the points of a chain. The start counts: there are J - 1
            moves.
        step_size: ε_j, a variance like τ: a positive number, or a schedule that is
            called with j = 0, 1, … (int32) for the paper's ε_1, ε_2, …. A first step
            of 4τ or more is an error, because the quadratic part of the drift then
            diverges by itself. If a traced τ falls that far, such moves are refused.
        temperature: T_j, a positive number or a schedule. 1 samples q. T_j = ε_j gives
            η_j the standard deviation ε_j. A small constant is the thermal noise of
            `entropy_sgd`.
        averaging: α in (0, 1], for an exponential average that forgets the first
            points: μ_1 = x_1, μ_j = (1 - α) μ_{j-1} + α x_j; the estimate is μ_J. The
            default is the mean weighted by ε_j.
        num_chains: C ≥ 1, independent chains of J points each. Their average is the
            estimate.
        warm_start: start at the last point of the previous update, as the paper does,
            not at x. With the paper's η = βτ this is stable, and saves the moves away
            from x. At larger rates it may diverge, because the chain pulls x back to
            its old position. `optax.sgd` behind it, of learning rate η and momentum μ,
            is stable on a flat loss if η < βτ(1 + R_J)(1 + μ)/A. This limit is at least
            2βτ, and little more unless the chain is long. A chain that keeps more than
            half of its start causes a warning. `step_fn` and `value_and_grad` always
            start at x.
        inner_batches: the batch has a leading axis of K batches, and point j uses the
            gradient on batch j mod K. The aux of `has_aux` belongs to the first batch.
            False uses the whole batch at every point.
        axis_name: the bound axis whose members share the C chains; see `Sampler`. Each
            member must hold the state of its own chains: call `init` inside the axis,
            or split the leading axis of a state made outside.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        reduction: run the chain only in the directions that the loss depends on for its
            batch, or all inner batches, as listed by `reduction_report`. This is exact,
            and faster. In the other directions the estimate is the mean under q, 0, and
            the end of the chain is drawn from its exact law, for the warm start.
        sample_complement: with `reduction`, draw the average of the chain in the other
            directions too, jointly with its end. The estimate then has the law of the
            full chain.

    Returns:
        A `Sampler` for `local_entropy`. Its info has `num_evaluations`, J C gradients,
        and `nonfinite_fraction`, the share of the J C points that was refused. The
        other estimates are NaN.

    Raises:
        ValueError: `num_steps` or `num_chains` is not a positive integer, `step_size`
            or `temperature` is not positive, `averaging` is not in (0, 1], `step_size`
            ≥ 4τ, the leaves of the batch have no common leading axis with
            `inner_batches`, an axis is not bound, both axes are equal, the state holds
            another number of chains, or the gradient of `value_fn` is identically zero.
        TypeError: `value_fn` returns integers, which have no gradient.

    Examples:
        The step on f(x) = x²/2 is -τ/(1 + τ) x, here -1/3 of x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.sgld(20_000, step_size=0.05)
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{step(jnp.array(3.0), jax.random.key(0)):.1f}")
        2.0

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 5.1.1, Algorithm 3; Chaudhari et
        al., *Entropy-SGD* (thermal noise, averaging).
    """

    num_steps: int
    step_size: ScalarOrSchedule
    _: dataclasses.KW_ONLY
    temperature: ScalarOrSchedule = 1.0
    averaging: Scalar | None = None
    num_chains: int = 1
    warm_start: bool = False
    inner_batches: bool = False
    sample_complement: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        counts_of(self, num_steps=1, num_chains=1)
        positive_or_schedule("step_size", self.step_size)
        positive_or_schedule("temperature", self.temperature)
        if self.averaging is not None:
            reason = "; it is the share of a new point in the average: "
            at_most_one("averaging", self.averaging, example=0.75, reason=reason)

    @property
    def traits(self) -> Traits:
        """Its capabilities and requirements."""
        return Traits(
            "local entropy",
            tells_objective=False,
            needs_gradient=True,
            batches_take_turns=self.inner_batches,
        )

    def check(self, tau: Scalar) -> None:
        """Raise if the quadratic part of the drift diverges at the first step."""
        first = positive(*first_value("step_size", self.step_size))
        if not isinstance(tau, Tracer) and first >= 4 * tau:
            raise ValueError(
                f"step_size starts at {first}, but a Langevin chain diverges "
                f"unless it is below 4 * tau = {4 * tau}; lower step_size or raise tau."
            )

    def warn(self, tau: Scalar) -> None:
        """Warn of a warm chain that keeps most of its start, and pulls x back to it."""
        if not self.warm_start or isinstance(tau, Tracer):
            return
        kept, in_mean = self.memory(tau)
        if kept > 0.5:
            warnings.warn(
                f"warm_start=True, but at tau={tau:g} {self.num_steps} steps keep "
                f"{kept:.2g} of the chain's start and pull x back to it: x diverges at "
                f"a learning rate above {(1 + kept) / in_mean:.2g} beta tau (with "
                "momentum, little more); leave warm_start out, use displacement=True "
                "and optax.sgd(1.0), or raise num_steps or step_size.",
                stacklevel=4,
            )

    def memory(self, tau: Scalar) -> tuple[float, float]:
        """The shares of a displacement at the start that remain in end and mean.

        NaN if the step sizes are traced.
        """
        # Concrete numbers, also inside an outer jit.
        with jax.ensure_compile_time_eval():
            moves = make_moves(
                self.num_steps,
                self.step_size,
                self.temperature,
                self.averaging,
                jnp.asarray(tau, jnp.float32),
            )
            if any(isinstance(value, Tracer) for value in (moves.share, moves.size)):
                return math.nan, math.nan
            shares, sizes = np.asarray(moves.share), np.asarray(moves.size)
        left = np.cumprod(1 - sizes / (2 * tau))
        mean = 0.0
        for share, at_point in zip(shares, [1.0, *left[:-1]], strict=True):
            mean += share * (at_point - mean)
        return float(left[-2]) if self.num_steps > 1 else 1.0, float(mean)

    @property
    def lone(self) -> bool:
        """True if the state has no axis of chains."""
        return self.num_chains == 1 and self.axis_name is None

    def share(self, axis_name: str | None) -> int:
        """How many chains a member runs; surplus chains do not count."""
        return -(-self.num_chains // members(axis_name))

    def first_state(self, params: PyTree) -> PyTree:
        """Chains that start at x."""
        if not self.warm_start:
            return ()
        position = widen(params)
        if self.lone:
            return SGLDState(position)
        inside = self.axis_name is not None and is_bound(self.axis_name)
        chains = self.share(self.axis_name if inside else None)
        return SGLDState(
            jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (chains, *leaf.shape)), position
            )
        )

    def in_space(self, given: Given) -> Estimate:
        """The mean of the points of all chains."""
        key, space, tau = given.key, given.space, given.tau
        dtype, chains = compute_dtype(space.zeros), self.share(self.axis_name)
        own = jnp.arange(chains, dtype=jnp.int32)
        numbers = member(self.axis_name) * chains + own
        keys = key[None]
        if self.num_chains > 1:
            keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        moves = make_moves(
            self.num_steps, self.step_size, self.temperature, self.averaging, tau
        )
        found = jax.vmap(
            lambda key, position: run_chain(
                key,
                position,
                space,
                tau,
                given.beta,
                moves,
                noise_at_once=max(1, chunk_limit(space.zeros) // chains),
                sample_complement=self.sample_complement,
                axis_name=self.axis_name,
            )
        )(keys, self.positions(given.state, space, chains))
        counts = (numbers < self.num_chains).astype(dtype) / self.num_chains
        mean, beside, refused = jax.tree.map(
            lambda leaf: jnp.tensordot(counts.astype(leaf.dtype), leaf, 1),
            (found.mean, found.beside, found.refused),
        )
        if self.axis_name is not None:
            mean, beside, refused = jax.lax.psum(
                (mean, beside, refused), self.axis_name
            )
        info = make_info(
            dtype,
            self.num_steps * self.num_chains,
            nonfinite_fraction=refused / self.num_steps,
        )
        state = given.state
        if self.warm_start:
            end = found.end
            if self.lone:
                end = jax.tree.map(lambda leaf: leaf[0], end)
            state = SGLDState(end)
        return Estimate(mean, state, info, beside)

    def positions(self, state: PyTree, space: Space, chains: int) -> PyTree:
        """The starts of this member's chains, on a leading axis; None means x."""
        if not self.warm_start:
            return None
        positions = state.position
        if self.lone:
            positions = jax.tree.map(lambda leaf: leaf[None], positions)
        for leaf, x in zip(
            jax.tree.leaves(positions), jax.tree.leaves(space.origin), strict=True
        ):
            if leaf.shape != (chains, *x.shape):
                raise ValueError(
                    f"state holds a position of shape {leaf.shape}, not {chains} of "
                    f"the num_chains={self.num_chains} of shape {x.shape} each; call "
                    "init inside the axis, as update is, or split the leading axis of "
                    "the state over axis_name, with num_chains a multiple of its "
                    "members."
                )
        return positions
