"""Stochastic gradient Langevin dynamics for the local entropy: Algorithm 3."""

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
    """The chain between two updates, with `warm_start`.

    Attributes:
        position: x_J, in the shapes of the parameters and at least float32; of several
            chains, or with an axis, on a leading axis: those of this member.

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
    """Langevin dynamics for E_q[X]: a chain of gradient steps (Algorithm 3).

        x_{j+1} = x_j - (ε_j/2) [β∇f(x_j) + (x_j - x)/τ] + η_j,   η_j ~ N(0, T_j ε_j I),
        E_q[X] ≈ Σ_j ε_j x_j / Σ_j ε_j   over x_1, …, x_J,

    for q ∝ exp(-βf(x') - |x' - x|²/2τ). The chain starts at x, or, with `warm_start`,
    where that of the previous update ended. A move to a point where the loss or its
    gradient is not finite is refused and counted: the chain stays. Where its start is
    refused, the chain starts at x, one point later.

    A chain from x finds of a constant gradient the share 1 - A of the step, where

        A = Σ_j ε_j R_j / Σ_j ε_j,   R_j = Π_{i<j} (1 - ε_i/2τ),

    so that a rate η behind it acts as (1 - A)η: 1 - A is .97 for the paper's J =
    1000 and ε_j = 1/(1000 + j), τ = .01, but .02 for J = 10 and ε = τ/100. That is the
    algorithm, and is not corrected: raise the rate, or J ε.

    Args:
        num_steps: J ≥ 1, the points of the chain, its start among them: J - 1 moves.
        step_size: ε_j, a variance like τ: a positive number, or a schedule that is
            called with j = 0, 1, … (int32) for the paper's ε_1, ε_2, …. A first step
            of 4τ or more is an error, since the quadratic part of the drift alone then
            diverges; where a schedule of τ falls that far under `jit`, such moves are
            refused, the chain stays at x, and the update is zero.
        temperature: T_j, a positive number or a schedule. 1 samples q; T_j = ε_j gives
            η_j the standard deviation ε_j; a small constant is the thermal noise of
            `entropy_sgd`.
        averaging: α in (0, 1], to forget the first points: the estimate is then μ_J of
            μ_1 = x_1, μ_j = (1 - α) μ_{j-1} + α x_j, and not the mean weighted by ε_j.
        num_chains: C ≥ 1, independent chains of J points each, of which the average is
            the estimate.
        warm_start: start at the previous update's last point, as the paper does, and
            not at x. Such a chain pulls x back to where it was: behind it `optax.sgd`
            with a rate η and heavy-ball momentum μ is stable on a flat loss if
            η < βτ(1 + R_J)(1 + μ)/A, which is at least 2βτ, and little more unless
            the chain is long; a chain that forgets less than half of its start is a
            warning. By the paper's η = βτ it is harmless, and saves the way from x. The
            pure functions `step_fn` and `value_and_grad` always start at x.
        inner_batches: the batch has a leading axis of K batches, and the gradient at
            the j-th point is that of batch j mod K (the aux of `has_aux` that of the
            first); False uses the whole batch.
        axis_name: the bound axis whose members share the C chains; see `Sampler`.
            Each must hold the state of its own chains: that which `init` returns in
            there, or its part along the leading axis of that which it returns outside.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        reduction: run the chain in the directions alone that the loss can see on its
            batch, or on all inner batches, where `reduction_report` finds them: exact,
            and faster. Where it cannot see, the chain is known in closed form; its end
            is drawn once, for the warm start, and its mean under q, 0, is the estimate.
        sample_complement: with `reduction`, draw the chain's own average there as well,
            jointly with its end: the estimate then has the law of the full chain.

    Returns:
        A `Sampler` for `local_entropy`. Its info knows `num_evaluations` (of ∇f, J C)
        and `nonfinite_fraction` (of the J C points, those refused); a chain knows
        neither F_τ nor independent units, so the other fields are NaN.

    Raises:
        ValueError: `num_steps` or `num_chains` is not a positive integer; `step_size`
            or `temperature` is not positive; `averaging` is not in (0, 1]; `step_size`
            ≥ 4τ; with `inner_batches`, the leaves of the batch have no common leading
            axis; an axis is not bound, or both are the same; the state is that of
            another number of chains.
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
        """What it can do, and what it needs."""
        return Traits(
            "local entropy",
            tells_objective=False,
            needs_gradient=True,
            batches_take_turns=self.inner_batches,
        )

    def check(self, tau: Scalar) -> None:
        """Refuse a first step at which the quadratic part of the drift diverges."""
        first = positive(*first_value("step_size", self.step_size))
        if not isinstance(tau, Tracer) and first >= 4 * tau:
            raise ValueError(
                f"step_size starts at {first}, but a Langevin chain diverges "
                f"unless it is below 4 * tau = {4 * tau}; lower step_size or raise tau."
            )

    def warn(self, tau: Scalar) -> None:
        """Warn of a kept chain that pulls x back with all its force."""
        if not self.warm_start or isinstance(tau, Tracer):
            return
        kept, in_mean = self.memory(tau)
        if kept > 0.5:
            warnings.warn(
                f"warm_start=True, but at tau={tau:g} {self.num_steps} steps keep "
                f"{kept:.2g} of where the chain was: it pulls x back there, and with a "
                f"rate above {(1 + kept) / in_mean:.2g} beta tau, and little more with "
                "momentum, x diverges; leave warm_start out, take displacement=True "
                "and optax.sgd(1.0), or raise num_steps or step_size.",
                stacklevel=4,
            )

    def memory(self, tau: Scalar) -> tuple[float, float]:
        """The share of a displacement at the start that is left in end and mean.

        NaN where the steps are traced.
        """
        # Known numbers, also inside somebody's jit.
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
        """Whether the state has no axis of chains."""
        return self.num_chains == 1 and self.axis_name is None

    def share(self, axis_name: str | None) -> int:
        """How many chains a member runs; where the numbers end, some do not count."""
        return -(-self.num_chains // members(axis_name))

    def first_state(self, params: PyTree) -> PyTree:
        """Chains at x."""
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
        """Where this member's chains start, on a leading axis; None is x."""
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
                    f"the num_chains={self.num_chains} of shape {x.shape}; take the "
                    "state that init returns where update is called, or split the "
                    "leading axis of another over axis_name, num_chains being a "
                    "multiple of its members."
                )
        return positions
