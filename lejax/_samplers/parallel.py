"""A sampler over all devices, in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lejax._info import Info
from lejax._internal.types import LossFn, PyTree, Scalar
from lejax._samplers.gradient import check_sampler
from lejax._samplers.sampler import Sampler
from lejax._spaces.space import Products


def parallel(
    sampler: Sampler,
    mesh: jax.sharding.Mesh | None = None,
    *,
    axis_name: str = "samples",
    data_axis_name: str | None = None,
) -> Sampler:
    """The same sampler, its draws or chains shared by all devices.

    Of importance weights w, L devices and J draws, say, each device sums J/L:

        δ̂ = Σ_l v_l / Σ_l S_l,   v_l = Σ_j w_j (X_j - x),   S_l = Σ_j w_j.

    It goes where the sampler went, with the same arguments, inside `jax.jit` or not;
    the estimate is the same to rounding, however many devices share the draws. Along
    the mesh's axis `axis_name` every device holds the parameters, the batch and the
    key, makes and evaluates its part of the draws, and an all-reduce merges the d
    numbers of the displacement and a few more, however many the draws are
    (`robbins_monro`: in every move). Of `sgld` whole chains are shared, so one with
    `num_chains=1` is not made faster. What comes back lies on the mesh, so the second
    call of a jitted update is traced anew, the later ones are not.

    Other axes of the mesh are left to `jax.jit`: parameters that are split along one,
    because no device holds all of them, stay split, and so do their perturbations,
    which are drawn in place. A batch that is split along `data_axis_name` stays split:
    f must be a mean over its rows, and is averaged over the parts, one number for each
    evaluation, or d where its gradient is wanted.

    Args:
        sampler: any sampler, made without axes of its own.
        mesh: of devices; by default one axis of all there are, those of all hosts among
            them.
        axis_name: the mesh's axis along which draws, or chains of `sgld`, are shared.
        data_axis_name: the mesh's axis along which batches are split by their leading
            axis, by which their leaves must be divisible (with `inner_batches` by their
            second); None leaves them whole.

    Returns:
        A `Sampler` of the same name and regularisation. The chains of `sgld` are its
        state, split along `axis_name` by their leading axis.

    Raises:
        ValueError: the mesh has no such axis; both axes are the same; a batch cannot be
            split into equal parts.
        TypeError: `sampler` is not a sampler.

    Example:
        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.parallel(lejax.importance(10_000))
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{jax.jit(step)(jnp.array(3.0), jax.random.key(0)):.1f}")
        2.0

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 5.1.2 (draws on parallel hardware).
    """
    check_sampler(sampler, "local entropy", "heat")
    if mesh is None:
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((jax.device_count(),), (axis_name,), axis_types=auto)
    for argument, name in (
        ("axis_name", axis_name),
        ("data_axis_name", data_axis_name),
    ):
        if name not in (*mesh.axis_names, None):
            raise ValueError(
                f"{argument}={name!r} is no axis of the mesh, which has "
                f"{mesh.axis_names}; pass one of these."
            )
    shared = sampler.over(axis_name, data_axis_name)
    whole, split = jax.P(), jax.P(axis_name)
    of_batch = jax.P(*(None,) * sampler.inner_batches, data_axis_name)

    def in_parts(batch: PyTree) -> PyTree:
        place, size = int(sampler.inner_batches), mesh.shape[data_axis_name]
        for leaf in jax.tree.leaves(batch):
            shape = jnp.shape(leaf)
            if len(shape) <= place or shape[place] % size:
                raise ValueError(
                    f"batch has a leaf of shape {shape}, whose axis {place} cannot be "
                    f"split into {size} equal parts along data_axis_name="
                    f"{data_axis_name!r}; pass a multiple of {size} rows."
                )
        if jax.sharding.AxisType.Explicit not in mesh.axis_types:
            return batch
        # Then the way in which an array is split is part of its type.
        return jax.sharding.reshard(batch, jax.NamedSharding(mesh, of_batch))

    def on_mesh(fn: Callable[..., Any], in_specs: Any, out_specs: Any):
        names = {axis_name, data_axis_name} - {None}
        return jax.shard_map(
            fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names
        )

    def places(state: PyTree) -> PyTree:
        """Chains are split; what is one number is the same for all."""
        return jax.tree.map(lambda leaf: split if leaf.ndim else whole, state)

    def init(params: PyTree) -> PyTree:
        of_state = places(jax.eval_shape(shared.init, params))
        return on_mesh(shared.init, (whole,), of_state)(params)

    def step(
        key: jax.Array,
        state: PyTree,
        params: PyTree,
        *,
        value_fn: LossFn,
        batch: PyTree = None,
        tau: Scalar,
        beta: Scalar = 1.0,
    ) -> tuple[PyTree, PyTree, Info]:
        def of_member(key, state, params, *part):
            return shared.step(
                key,
                state,
                params,
                value_fn=value_fn,
                # A whole batch may hold more than arrays.
                batch=part[0] if part else batch,
                tau=tau,
                beta=beta,
            )

        part = () if data_axis_name is None or batch is None else (in_parts(batch),)
        of_state = places(state)
        in_specs = (whole, of_state, whole, *(of_batch for _ in part))
        run = on_mesh(of_member, in_specs, (whole, of_state, whole))
        return run(key, state, params, *part)

    def learning(products: Products) -> Sampler:
        assert sampler.learning is not None
        return parallel(
            sampler.learning(products),
            mesh,
            axis_name=axis_name,
            data_axis_name=data_axis_name,
        )

    return sampler._replace(
        init=init,
        step=step,
        over=shared.over,
        learning=sampler.learning and learning,
    )
