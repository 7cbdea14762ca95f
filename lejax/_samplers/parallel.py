"""A sampler whose work is split over devices, in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lejax._info import Info
from lejax._internal.types import PyTree, Scalar
from lejax._samplers.gradient import check_sampler
from lejax._samplers.sampler import Sampler, Traits
from lejax._tracing.loss import Loss, OutsideLoss


@dataclasses.dataclass(frozen=True, repr=False)
class parallel(Sampler):
    """The same sampler, with its samples or chains split over devices.

    For any number of devices the estimate is the same, to rounding, as from `sampler`
    itself. Use it in place of the sampler if one device is too slow. Do not use it for
    `sgld` with `num_chains=1`: only whole chains are split. As in distributed evolution
    strategies, devices exchange losses, and each makes its own draws from the key.

    For importance weights w, L devices and J samples, device l sums over its share:

        δ̂ = Σ_l v_l / Σ_l S_l,   v_l = Σ_j w_j (X_j - x),   S_l = Σ_j w_j.

    Along `axis_name`, every device holds the parameters, the batch and the key. One
    exchange gathers the J losses. Another sums the d numbers of the displacement and,
    without credit, d more for its error (`robbins_monro`: in every move). The result
    lies on the mesh, so the second call of a jitted update is traced again; later calls
    are not.

    `jax.jit` handles the other axes of the mesh. Parameters that are split along one
    stay split, and their perturbations are drawn in place. A batch that is split along
    `data_axis_name` stays split. f must be a mean over its rows; it is averaged over
    the parts, one number for each evaluation, or d numbers for each gradient.

    Args:
        sampler: any sampler, made without axes of its own.
        mesh: of devices. The default is one axis of all devices of all hosts.
        axis_name: the axis of the mesh that samples, or chains of `sgld`, are split
            over.
        data_axis_name: the axis of the mesh that batches are split over, by their
            leading axis (with `inner_batches` the second), which its size must divide.
            None leaves batches whole.

    Returns:
        A `Sampler` of the same name and regularisation. For `sgld`, its state holds the
        chains, split along `axis_name` by their leading axis.

    Raises:
        ValueError: the mesh has no such axis, both axes are equal, or a batch cannot be
            split into equal parts.
        TypeError: `sampler` is not a sampler.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.parallel(lejax.importance(10_000))
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{jax.jit(step)(jnp.array(3.0), jax.random.key(0)):.1f}")
        2.0

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 5.1.2 (draws on parallel hardware).
    """

    sampler: Sampler
    mesh: jax.sharding.Mesh | None = None
    _: dataclasses.KW_ONLY
    axis_name: str = "samples"
    data_axis_name: str | None = None

    def __post_init__(self) -> None:
        check_sampler(self.sampler, "local entropy", "heat")
        if self.mesh is None:
            auto = (jax.sharding.AxisType.Auto,)
            mesh = jax.make_mesh(
                (jax.device_count(),), (self.axis_name,), axis_types=auto
            )
            object.__setattr__(self, "mesh", mesh)
        super().__post_init__()
        for argument in ("axis_name", "data_axis_name"):
            name = getattr(self, argument)
            if name not in (*self._mesh.axis_names, None):
                raise ValueError(
                    f"{argument}={name!r} is not an axis of the mesh, whose axes are "
                    f"{self._mesh.axis_names}; pass one of these."
                )

    @property
    def _mesh(self) -> jax.sharding.Mesh:
        assert self.mesh is not None
        return self.mesh

    @property
    def of_member(self) -> Sampler:
        """The sampler of one device."""
        axes = {"axis_name": self.axis_name, "data_axis_name": self.data_axis_name}
        return dataclasses.replace(self.sampler, **axes)

    @property
    def traits(self) -> Traits:
        """The traits of the wrapped sampler."""
        return self.sampler.traits._replace(reads_again=True)

    @property
    def name(self) -> str:
        """The name of the wrapped sampler."""
        return self.sampler.name

    def check(self, tau: Scalar) -> None:
        """The check of the wrapped sampler."""
        self.sampler.check(tau)

    def warn(self, tau: Scalar) -> None:
        """The warning of the wrapped sampler."""
        self.sampler.warn(tau)

    def first_state(self, params: PyTree) -> PyTree:
        """The state of all devices."""
        member = self.of_member
        of_state = self._places(jax.eval_shape(member.first_state, params))
        return self._on_mesh(member.first_state, (jax.P(),), of_state)(params)

    def varying(self, params: PyTree) -> PyTree:
        """The parameters as they are: outside of the mesh no axis is bound."""
        return params

    def run(
        self,
        key: jax.Array,
        state: PyTree,
        params: PyTree,
        loss: Loss | OutsideLoss,
        tau: Scalar,
        beta: Scalar,
        learns: Any = None,
    ) -> tuple[PyTree, PyTree, Info, PyTree]:
        """`run` of the wrapped sampler, on every device."""
        assert isinstance(loss, Loss)
        value_fn, batch = loss.source

        def of_device(
            key: jax.Array, state: PyTree, params: PyTree, *part: PyTree
        ) -> tuple[PyTree, PyTree, Info, PyTree]:
            member = self.of_member
            # A batch that is not split may hold more than arrays: close over it.
            own = member.loss(
                value_fn,
                params,
                part[0] if part else batch,
                has_aux=loss.aux is not None,
            )
            return member.run(key, state, params, own, tau, beta, learns)

        split = self.data_axis_name is not None and batch is not None
        part = (self._in_parts(batch),) if split else ()
        whole, of_state = jax.P(), self._places(state)
        in_specs = (whole, of_state, whole, *(self._of_batch for _ in part))
        out_specs = whole, of_state, whole, whole
        return self._on_mesh(of_device, in_specs, out_specs)(key, state, params, *part)

    @property
    def _of_batch(self) -> jax.P:
        return jax.P(*(None,) * self.traits.batches_take_turns, self.data_axis_name)

    def _in_parts(self, batch: PyTree) -> PyTree:
        place = int(self.traits.batches_take_turns)
        size = self._mesh.shape[self.data_axis_name]
        for leaf in jax.tree.leaves(batch):
            shape = jnp.shape(leaf)
            if len(shape) <= place or shape[place] % size:
                raise ValueError(
                    f"batch has a leaf of shape {shape}, whose axis {place} cannot be "
                    f"split into {size} equal parts along data_axis_name="
                    f"{self.data_axis_name!r}; pass a multiple of {size} rows."
                )
        if jax.sharding.AxisType.Explicit not in self._mesh.axis_types:
            return batch
        # On an explicit mesh, the sharding of an array is part of its type.
        of_batch = jax.NamedSharding(self._mesh, self._of_batch)
        return jax.sharding.reshard(batch, of_batch)

    def _on_mesh(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        names = {self.axis_name, self.data_axis_name} - {None}
        return jax.shard_map(
            fn,
            mesh=self._mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=names,
        )

    def _places(self, state: PyTree) -> PyTree:
        """The specs of a state: chains are split, scalars are replicated."""
        return jax.tree.map(
            lambda leaf: jax.P(self.axis_name) if leaf.ndim else jax.P(), state
        )
