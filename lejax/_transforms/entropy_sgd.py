"""Entropy-SGD of Chaudhari et al., as a whole optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lejax._internal.checks import positive, positive_count, positive_or_schedule
from lejax._internal.types import PyTree, Scalar, ScalarOrSchedule
from lejax._samplers.sgld import sgld
from lejax._transforms.smoothing import smoothed


def entropy_sgd(
    learning_rate: optax.ScalarOrSchedule,
    tau: ScalarOrSchedule,
    *,
    key: jax.Array,
    num_steps: int = 20,
    inner_learning_rate: Scalar = 0.1,
    noise: Scalar = 1e-4,
    averaging: Scalar = 0.75,
    momentum: float | None = 0.9,
    inner_batches: bool = True,
    has_aux: bool | PyTree = False,
) -> optax.GradientTransformationExtraArgs:
    """Entropy-SGD: a short Langevin chain, then a step towards its average.

    Use it for differentiable losses with many minibatches; it is the whole optimizer of
    Chaudhari et al. For a mask, another sampler or another outer optimizer, use
    `local_entropy` with `sgld`, from which this is built (`displacement=True`, then
    `optax.sgd`). Without gradients use `local_entropy` with `importance`. In optax,
    `optax.lookahead` has the same two loops, without noise or the pull γ (x' - x).

    With γ = 1/τ and L inner steps that start at x' = μ = x,

        x' ← x' - η' [∇f(x') + γ (x' - x)] + √η' ε N(0, I),   μ ← (1 - α) μ + α x',

    and then x ← x - η (x - μ) with Nesterov momentum. Noise in directions that the loss
    does not depend on has mean 0, and is left out of μ (see `reduction` of `sgld`).

    To change numbers at run time, use `optax.inject_hyperparams(lejax.entropy_sgd,
    static_args="num_steps")`.

    Args:
        learning_rate: η, a number or a schedule: the share of the way to μ that a step
            goes, as in the authors' code. Their paper keeps γ in the gradient: its rate
            times γ is η.
        tau: τ = 1/γ, a variance, or a schedule. The scoping γ_0 (1 + γ_1)^k of the
            authors is `lejax.scoping(1 / gamma_0, gamma_1)`, for instance with
            γ_0 = 1e-4 and γ_1 = 1e-3.
        key: a typed key, `jax.random.key(seed)`.
        num_steps: L ≥ 1, the inner steps. An update takes L + 1 gradients; the last
            one only checks that the last point is finite.
        inner_learning_rate: η' > 0, half of the `step_size` of `sgld`.
        noise: ε > 0, the thermal noise.
        averaging: α in (0, 1], the weight of the newest point: 0.75 in the authors'
            paper, 0.25 in their code.
        momentum: the Nesterov momentum of the outer step; None for none.
        inner_batches: whether the batch has a leading axis of L batches, one for each
            inner step. If False, every inner step uses the whole batch.
        has_aux: whether `value_fn` returns a pair, as in `local_entropy`.

    Returns:
        An `optax.GradientTransformationExtraArgs`, called like `local_entropy`;
        `optax.tree.get(state, "info")` is the `Info` of the last update.

    Raises:
        ValueError: `num_steps` is not a positive integer; `inner_learning_rate`,
            `noise`, `averaging` or `tau` is not positive; `averaging` is above 1, or
            `inner_learning_rate` ≥ 2τ; the leading axis of the batch is not
            `num_steps`; the gradient of `value_fn` is identically zero.
        TypeError: `key` is not a typed key.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> def loss(x, batch):
        ...     return jnp.mean((x - batch) ** 2) / 2
        >>> batches = jnp.ones((20, 8, 3))  # 20 batches of 8
        >>> tx = lejax.entropy_sgd(
        ...     0.5, lejax.scoping(1e4, 1e-3), key=jax.random.key(0), momentum=None
        ... )
        >>> x = jnp.zeros(3)
        >>> updates, state = tx.update(
        ...     None, tx.init(x), x, value_fn=loss, batch=batches
        ... )
        >>> print(optax.apply_updates(x, updates).round(2))
        [0.24 0.24 0.24]

    References:
        Chaudhari et al., *Entropy-SGD: Biasing gradient descent into wide valleys*,
        Algorithm 1.
    """
    num_steps = positive_count("num_steps", num_steps)
    rate = positive("inner_learning_rate", inner_learning_rate)
    first_tau = positive_or_schedule("tau", tau)
    positive("noise", noise)
    # The check of `sgld`, with the names of this function's arguments.
    if rate >= 2 * first_tau:
        raise ValueError(
            f"inner_learning_rate must be below 2 * tau = {2 * first_tau}, got {rate}: "
            "above it the inner chain diverges; lower inner_learning_rate or raise tau."
        )
    sampler = sgld(
        num_steps + 1,  # points
        2 * inner_learning_rate,
        temperature=noise**2 / 2,
        averaging=averaging,
        inner_batches=inner_batches,
    )
    tx = optax.chain(
        smoothed(sampler, tau, key, 1.0, None, has_aux, displacement=True),
        optax.sgd(learning_rate, momentum=momentum, nesterov=True),
    )

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(extra_args.get("batch"))]
        # `sgld` accepts any leading axis, also that of the examples by mistake.
        if inner_batches and any(shape[:1] != (num_steps,) for shape in shapes):
            raise ValueError(
                f"batch has leaves of shapes {shapes}, and inner_batches=True needs a "
                f"leading axis of num_steps={num_steps} batches; stack that many, or "
                "pass inner_batches=False for one ordinary batch."
            )
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)
