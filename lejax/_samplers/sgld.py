"""Stochastic gradient Langevin dynamics for the local entropy: Algorithm 3."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import chunk_limit
from lejax._info import Info, make_info
from lejax._internal.checks import at_most_one, positive_count, positive_or_schedule
from lejax._internal.mesh_axes import Axes, is_bound, make_axes, member, members
from lejax._internal.trees import compute_dtype, widen
from lejax._internal.types import PyTree, Scalar, ScalarOrSchedule
from lejax._samplers.langevin import Langevin, run_chain
from lejax._samplers.sampler import Sampler, make_sampler
from lejax._spaces.reduced import space_maker
from lejax._spaces.space import Space


class SGLDState(NamedTuple):
    """The chain between two updates.

    Attributes:
        position: x_J, in the shapes of the parameters and at least float32; of several
            chains, or with an axis, on a leading axis: those of this member.

    Example:
        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.sgld(50, 0.1, num_chains=2)
        >>> state = sampler.init(jnp.ones(3))
        >>> _, state, _ = sampler.step(
        ...     jax.random.key(0), state, jnp.ones(3), value_fn=jnp.sum, tau=1.0
        ... )
        >>> print(state.position.shape)
        (2, 3)
    """

    position: PyTree


def sgld(
    num_steps: int,
    step_size: ScalarOrSchedule,
    *,
    temperature: ScalarOrSchedule = 1.0,
    averaging: Scalar | None = None,
    num_chains: int = 1,
    warm_start: bool = True,
    inner_batches: bool = False,
    axis_name: str | None = None,
    data_axis_name: str | None = None,
    reduction: bool = True,
    sample_complement: bool = False,
) -> Sampler:
    """Langevin dynamics for E_q[X]: a chain of gradient steps (Algorithm 3).

        x_{j+1} = x_j - (ε_j/2) [β∇f(x_j) + (x_j - x)/τ] + η_j,   η_j ~ N(0, T_j ε_j I),
        E_q[X] ≈ Σ_j ε_j x_j / Σ_j ε_j   over x_1, …, x_J,

    for q ∝ exp(-βf(x') - |x' - x|²/2τ). The chain starts where that of the previous
    update ended, or at x. A move to a point where the loss or its gradient is not
    finite is refused and counted: the chain stays. Where its start is refused, the
    chain starts at x, one point later.

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
        warm_start: start at the previous update's last point; False starts at x. The
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

    Example:
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
    num_steps = positive_count("num_steps", num_steps)
    num_chains = positive_count("num_chains", num_chains)
    first_step_size = positive_or_schedule("step_size", step_size)
    positive_or_schedule("temperature", temperature)
    if averaging is not None:
        reason = "; it is the share of a new point in the average: "
        at_most_one("averaging", averaging, example=0.75, reason=reason)

    def check(tau: float) -> None:
        if first_step_size >= 4 * tau:
            raise ValueError(
                f"step_size starts at {first_step_size}, but a Langevin chain diverges "
                f"unless it is below 4 * tau = {4 * tau}; lower step_size or raise tau."
            )

    def lone(axis_name: str | None) -> bool:
        return num_chains == 1 and axis_name is None

    def share(axis_name: str | None) -> int:
        """How many chains a member runs; where the numbers end, some do not count."""
        return -(-num_chains // members(axis_name))

    def init(params: PyTree, axes: Axes) -> PyTree:
        if not warm_start:
            return ()
        position = widen(params)
        if lone(axes.samples):
            return SGLDState(position)
        inside = axes.samples is not None and is_bound(axes.samples)
        chains = share(axes.samples if inside else None)
        return SGLDState(
            jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (chains, *leaf.shape)), position
            )
        )

    def run(
        key: jax.Array,
        state: PyTree,
        space: Space,
        tau: jax.Array,
        beta: jax.Array,
    ) -> tuple[PyTree, PyTree, Info]:
        dtype = compute_dtype(space.zeros)
        chains = share(space.axis_name)

        own = jnp.arange(chains, dtype=jnp.int32)
        numbers = member(space.axis_name) * chains + own
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        positions = state.position if warm_start else None
        if lone(space.axis_name):
            positions = jax.tree.map(lambda leaf: leaf[None], positions)
        for leaf, x in zip(
            jax.tree.leaves(positions), jax.tree.leaves(space.origin), strict=False
        ):
            if leaf.shape != (chains, *x.shape):
                raise ValueError(
                    f"state holds a position of shape {leaf.shape}, not {chains} of "
                    f"the num_chains={num_chains} of shape {x.shape}; take the state "
                    "that init returns where update is called, or split the leading "
                    "axis of another over axis_name, num_chains being a multiple of "
                    "its members."
                )
        plan = Langevin(
            num_steps,
            step_size,
            temperature,
            warm_start,
            sample_complement,
            averaging,
            noise_at_once=max(1, chunk_limit(space.zeros) // chains),
        )
        found = jax.vmap(
            lambda key, position: run_chain(key, position, space, tau, beta, plan)
        )(keys, positions)
        counts = (numbers < num_chains).astype(dtype) / num_chains
        mean, unseen_mean, refused = jax.tree.map(
            lambda leaf: jnp.tensordot(counts.astype(leaf.dtype), leaf, 1),
            (found.mean, found.unseen_mean, found.refused),
        )
        if space.axis_name is not None:
            mean, unseen_mean, refused = jax.lax.psum(
                (mean, unseen_mean, refused), space.axis_name
            )
        displacement = space.lift(mean)
        if unseen_mean is not None:
            displacement = optax.tree.add(displacement, unseen_mean)
        info = make_info(
            dtype, num_steps * num_chains, nonfinite_fraction=refused / num_steps
        )
        if warm_start:
            end = found.end
            if lone(space.axis_name):
                end = jax.tree.map(lambda leaf: leaf[0], end)
            state = SGLDState(end)
        return displacement, state, info

    return make_sampler(
        run,
        "sgld",
        "local entropy",
        init=init,
        check=check,
        axes=make_axes(axis_name, data_axis_name),
        differentiable=True,
        inner_batches=inner_batches,
        space_maker=space_maker(reduction),
    )
