"""The black-box search as pure functions: CMA-ES with the moments of all draws."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from lejax._internal.checks import above_one, positive, typed_key
from lejax._internal.types import Scalar
from lejax._search.box import reflect
from lejax._search.checks import (
    check_bounds,
    check_inside,
    check_largest,
    even_count,
    floating_vector,
)
from lejax._search.selection import select
from lejax._search.state import SearchState
from lejax._search.stopping import history_size, stalled
from lejax._search.update import moved, pairs


@dataclasses.dataclass(frozen=True)
class search_rule:
    """Search for the minimum of a black box, as pure `init`, `ask` and `tell`.

    Use it for up to about a hundred parameters with losses that have no useful
    gradient. It needs no number to tune. The three methods run under `jax.jit`,
    `jax.vmap` (many searches at once) and `jax.lax.scan`. Do not use it if gradients
    are cheap, or to sample a posterior: the covariance it learns serves the search.
    It is a relative of CMA-ES, with restarts as in IPOP-CMA-ES. It differs in that
    draws come in pairs, all losses have weights by their ranks, and the learning rate
    of the shape follows the effective number of samples.

    With draws x_j = x + σAu_j, weights w̃_j ∝ exp(-4 rank_j) and ranks in [0, 1],

        m = Σ w̃_j u_j,   E = 1/Σ w̃_j²,   x ← x + σAm,
        AAᵀ ← A [I + ρ(Σ w̃_j u_j u_jᵀ - Σ u_j u_jᵀ/J) - ρ²(mmᵀ - v I) + c₁(p pᵀ - I)] Aᵀ

    with ρ = min(½, E/(d^{1.5} + E)), c₁ = 2/((d + 1.3)² + E), and v the noise in m per
    dimension. The path p and the step size σ (CSA) follow CMA-ES. The length of m
    under pairs replaces that of independent draws.

    A loss that is not finite counts as the worst: it has weight 0, and the shape moves
    away from it. If all losses of an update failed, the Gaussian stays.

    A run ends if the losses differ by rounding only, if σ or the condition number is
    at the end of the dtype, or if the medians of the losses do not fall. The next run
    then begins at a random point with twice the population, up to `max_population`.
    The point is uniform in the box, or within 2 `scale` of `mean` where the box is
    open. Restarts change no shape, so they compile nothing.

    The methods:

    - `init(key, mean, scale)` returns a `SearchState`. `key` is a typed key. `mean` is
      a floating array (d,), the first centre, and its dtype is that of the search.
      `scale` is the first standard deviation of the draws, about a quarter of the
      range in which the minimum lies. All parameters should have a similar range.
    - `ask(state)` returns points (`max_population`, d). The first `state.population` of
      them count. It depends on the state alone.
    - `tell(state, losses)` returns the next state. `losses` is (`max_population`,);
      entries from `state.population` on are ignored.

    Args:
        population: J, the even number of points of an update in the first run, at
            least 4. The default is 4 + ⌊3 ln d⌋, made even.
        max_population: the largest population of a restart, even. The default is
            `population`, and then there are no restarts: `state.stalled` says when one
            would be due.
        lower: lower bounds of the parameters, a number or (d,); -inf for none. Draws
            outside of the box are reflected at the bound, so none is lost, and the
            minimum may lie on a bound.
        upper: upper bounds; inf for none.
        max_change: c > 1: in an update, no variance changes by more than this factor
            relative to σ².

    Returns:
        A rule with the methods `init`, `ask` and `tell`.

    Raises:
        ValueError: a population is not even, is below 4 or above `max_population`,
            `lower` is not below `upper`, or `max_change` is not above 1. `init`
            raises it if `mean` is not a finite floating vector inside the box, if the
            bounds have another shape, or if `scale` is not positive; `tell`, if
            `losses` has another shape than (`max_population`,).
        TypeError: `init` was not given a typed key.

    Examples:
        Rosenbrock's function in five dimensions, compiled as one loop:

        >>> import jax, jax.numpy as jnp, lejax
        >>> def f(x):
        ...     return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        >>> rule = lejax.search_rule()
        >>> def update(state, _):
        ...     return rule.tell(state, jax.vmap(f)(rule.ask(state))), None
        >>> state = rule.init(jax.random.key(0), jnp.zeros(5), 0.5)
        >>> state, _ = jax.lax.scan(update, state, length=500)
        >>> print(jnp.round(state.best_x, 2), state.num_evaluations)
        [1. 1. 1. 1. 1.] 4000

    References:
        Hansen, *The CMA evolution strategy: a tutorial*, arXiv:1604.00772; Auger,
        Hansen, *A restart CMA evolution strategy with increasing population size*
        (2005); Garcia Trillos, Kaplan, Sanz-Alonso, Algorithm 1, for the moments.
    """

    population: int | None = None
    _: dataclasses.KW_ONLY
    max_population: int | None = None
    lower: ArrayLike = -math.inf
    upper: ArrayLike = math.inf
    max_change: Scalar = 10.0

    def __post_init__(self) -> None:
        for name in ("population", "max_population"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, even_count(name, value))
        if self.population is not None:
            check_largest(self.population, self.max_population)
        above_one("max_change", self.max_change)
        check_bounds(self.lower, self.upper)

    def init(self, key: jax.Array, mean: ArrayLike, scale: Scalar) -> SearchState:
        """The state of a search that begins with N(mean, scale² I)."""
        typed_key(key)
        positive("scale", scale)
        x = floating_vector(mean)
        lower, upper = self._bounds(x)
        if not isinstance(x, Tracer):
            check_inside(x, lower, upper)
        population, _ = self._sizes(x.size)
        d, dtype = x.size, x.dtype

        def zero() -> jax.Array:
            return jnp.zeros((), jnp.int32)

        # Every field is a buffer of its own, so that the state may be donated.
        return SearchState(
            mean=jnp.array(x),
            scale=jnp.array(scale, dtype),
            root=jnp.eye(d, dtype=dtype),
            scale_path=jnp.zeros(d, dtype),
            shape_path=jnp.zeros(d, dtype),
            population=jnp.asarray(population, jnp.int32),
            step=zero(),
            run_step=zero(),
            key=jax.random.clone(key),
            best_x=jnp.array(x),
            best_value=jnp.asarray(jnp.inf, dtype),
            num_evaluations=zero(),
            num_restarts=zero(),
            stalled=jnp.zeros((), bool),
            first_mean=jnp.array(x),
            first_scale=jnp.array(scale, dtype),
            history=jnp.full(history_size(d, population), jnp.inf, dtype),
        )

    def ask(self, state: SearchState) -> jax.Array:
        """The points of the next update, (max_population, d), inside the box."""
        return self._points(state, self._draws(state))

    def tell(self, state: SearchState, losses: ArrayLike) -> SearchState:
        """The state after an update by the losses at the points of `ask(state)`."""
        _, size = self._sizes(state.mean.size)
        values = jnp.asarray(losses)
        if values.shape != (size,):
            raise ValueError(
                f"losses must have shape ({size},), one for each point of ask(state), "
                f"got {values.shape}; entries from state.population on are ignored, "
                "and may be filled with NaN."
            )
        values = values.astype(state.mean.dtype)
        counts = jnp.arange(size, dtype=jnp.int32) < state.population
        values = jnp.where(counts & jnp.isfinite(values), values, jnp.inf)
        u = self._draws(state)
        with jax.default_matmul_precision("highest"):
            new = moved(state, u, select(values, state.population), self.max_change)
        limits = jnp.finfo(values.dtype)
        # Beyond these a run that may not restart would leave the numbers there are.
        scale = new.scale.clip(
            state.first_scale * limits.eps**2, state.first_scale / limits.eps**0.5
        )
        mean, sign = reflect(new.mean, *self._bounds(state.mean))
        best = values.argmin()
        better = values[best] < state.best_value
        history = jnp.append(state.history[1:], values[best])
        run_step = state.run_step + 1
        stops = stalled(
            history,
            run_step,
            values,
            state.population,
            scale * new.largest / state.first_scale,
            new.condition,
            state.mean.size,
        )
        state = state._replace(
            mean=mean,
            scale=scale,
            # A mean that is reflected takes the Gaussian with it: the loss beyond a
            # bound is a mirror image of the loss inside.
            root=sign[:, None] * new.root * sign,
            scale_path=sign * new.scale_path,
            shape_path=sign * new.shape_path,
            step=state.step + 1,
            run_step=run_step,
            best_x=jnp.where(better, self._points(state, u)[best], state.best_x),
            best_value=jnp.where(better, values[best], state.best_value),
            num_evaluations=state.num_evaluations + state.population,
            stalled=stops,
            history=history,
        )
        population, largest = self._sizes(state.mean.size)
        if population == largest:
            return state
        next_run = self._restarted(state)
        # A key has no `where`, and does not change.
        fields = [name for name in state._fields if name != "key"]
        return state._replace(
            **{
                name: jnp.where(stops, getattr(next_run, name), getattr(state, name))
                for name in fields
            }
        )

    def _restarted(self, state: SearchState) -> SearchState:
        """The first state of the next run."""
        _, largest = self._sizes(state.mean.size)
        lower, upper = self._bounds(state.mean)
        closed = jnp.isfinite(upper - lower)
        low = jnp.where(closed, lower, state.first_mean - 2 * state.first_scale)
        high = jnp.where(closed, upper, state.first_mean + 2 * state.first_scale)
        # The draws of this step were made already.
        key = jax.random.split(self._step_key(state.key, state.step - 1))[1]
        share = jax.random.uniform(key, state.mean.shape, state.mean.dtype)
        mean, _ = reflect(low + share * (high - low), lower, upper)
        return state._replace(
            mean=mean,
            scale=state.first_scale,
            root=jnp.eye(state.mean.size, dtype=state.mean.dtype),
            scale_path=jnp.zeros_like(state.scale_path),
            shape_path=jnp.zeros_like(state.shape_path),
            population=jnp.minimum(2 * state.population, largest),
            run_step=jnp.zeros_like(state.run_step),
            num_restarts=state.num_restarts + 1,
            history=jnp.full_like(state.history, jnp.inf),
        )

    def _draws(self, state: SearchState) -> jax.Array:
        """The draws u of the next update, (max_population, d)."""
        d = state.mean.size
        key = jax.random.split(self._step_key(state.key, state.step))[0]
        return pairs(key, self._sizes(d)[1], d, state.mean.dtype)

    def _points(self, state: SearchState, u: jax.Array) -> jax.Array:
        """x + σAu, reflected into the box."""
        with jax.default_matmul_precision("highest"):
            points = state.mean + state.scale * (u @ state.root.T)
        return reflect(points, *self._bounds(state.mean))[0]

    @staticmethod
    def _step_key(key: jax.Array, step: jax.Array) -> jax.Array:
        """The key of an update."""
        return jax.random.fold_in(key, step)

    def _sizes(self, d: int) -> tuple[int, int]:
        """The first population and the largest."""
        population = self.population
        if population is None:
            population = 4 + math.floor(3 * math.log(d))
            population += population % 2
            check_largest(population, self.max_population)
        return population, self.max_population or population

    def _bounds(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The bounds of every parameter."""
        found = []
        for name in ("lower", "upper"):
            bound = jnp.asarray(getattr(self, name), x.dtype)
            if bound.shape not in ((), x.shape):
                raise ValueError(
                    f"{name} must be a number or have the shape of mean, {x.shape}, "
                    f"got shape {bound.shape}; pass one bound for each parameter."
                )
            found.append(jnp.broadcast_to(bound, x.shape))
        return found[0], found[1]
