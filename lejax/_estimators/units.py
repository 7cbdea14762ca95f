"""How J evaluations are divided: into units, over devices, in groups and chunks.

A unit is all evaluations that share the numbers of one draw: copies of it under random
signs, each used once or as an antithetic pair. Units are independent, and each is
determined by its number, so neither chunks nor devices change a sample.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lejax._internal.mesh_axes import gathered, member


class Part(NamedTuple):
    """Units of one kind, as one member of an axis evaluates them.

    A part is divided into groups, a group into chunks, and a chunk into units. If a
    group is one chunk, several groups are evaluated at once.

    Attributes:
        start: the number of the first unit of the first member.
        stop: units from this number on are padding.
        share: the difference in number between units of consecutive members.
        length: the units of a member in this part.
        signs: k, 2 for antithetic pairs, otherwise 1.
        copies: g, the copies of a draw under random signs.
        odd: True if the last unit is a single evaluation.
        groups: the groups in the part.
        chunks: the chunks in a group.
        size: the units in a chunk.
        at_once: the groups that are evaluated at once.
    """

    start: int
    stop: int
    share: int
    length: int
    signs: int
    copies: int
    odd: bool
    groups: int
    chunks: int
    size: int
    at_once: int

    @property
    def units(self) -> int:
        """How many units a member evaluates, padding included."""
        return self.groups * self.chunks * self.size


@dataclasses.dataclass(frozen=True)
class Units:
    """All evaluations of an update, by all members of an axis.

    Arrays over all evaluations are flat, ordered by part, member, unit, sign and copy.

    Attributes:
        parts: the units, by kind.
        axis_name: of the members that share the units; None without.
        members: the number of members.
    """

    parts: tuple[Part, ...]
    axis_name: str | None
    members: int

    @functools.cached_property
    def real(self) -> np.ndarray | None:
        """Which evaluations count, and are not padding; None if all do."""
        real = np.concatenate([real.ravel() for real in self._real_of_members])
        return None if real.all() else real

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """How many evaluations count in each unit."""
        return np.concatenate([real.sum((1, 2)) for real in self._real_of_members])

    @property
    def num_samples(self) -> int:
        """J."""
        return int(self.sizes.sum())

    @functools.cached_property
    def _real_of_members(self) -> list[np.ndarray]:
        members = range(self.members)
        return [self.real_of(part, i) for part in self.parts for i in members]

    def real_of(self, part: Part, i: Any) -> np.ndarray:
        """Which evaluations count in a part of member i, (units, k, g)."""
        within = np.arange(part.units)
        numbers = part.start + part.share * i + within
        real = np.zeros((part.units, part.signs, part.copies), bool)
        real[(within < part.length) & (numbers < part.stop)] = True
        if part.odd:
            last = numbers == part.stop - 1
            real[last] = False
            real[last, 0, 0] = within[last] < part.length
        return real

    def filled(self, losses: jax.Array) -> jax.Array:
        """The losses, with +inf for padding."""
        return losses if self.real is None else jnp.where(self.real, losses, jnp.inf)

    def own_real(self, part: Part) -> jax.Array | None:
        """Which of this member's evaluations count, (units, k, g); None if all do."""
        of_members = np.stack([self.real_of(part, i) for i in range(self.members)])
        if of_members.all():
            return None
        return self._own(jnp.asarray(of_members))

    def numbers(self, part: Part) -> jax.Array:
        """The numbers of this member's units."""
        numbers = part.start + jnp.arange(part.units, dtype=jnp.int32)
        if self.axis_name is None:
            return numbers
        return numbers + part.share * member(self.axis_name)

    def _own(self, of_members: jax.Array) -> jax.Array:
        """The entry of this member."""
        if self.axis_name is None:
            return of_members[0]
        return of_members[member(self.axis_name)]

    def all_of(self, own: list[jax.Array]) -> jax.Array:
        """Gather the parts (units, k, g, ...) of all members in one flat array."""
        if self.axis_name is None:
            every = own
        else:
            every = [gathered(values, self.axis_name) for values in own]
        return joined(
            [
                values.reshape(-1, *mine.shape[3:])
                for values, mine in zip(every, own, strict=True)
            ]
        )

    def cut(self, flat: jax.Array) -> Iterator[tuple[Part, jax.Array]]:
        """Cut a flat array into parts, (members, units, k, g, ...)."""
        first = 0
        for part in self.parts:
            shape = self.members, part.units, part.signs, part.copies
            stop = first + math.prod(shape)
            yield part, flat[first:stop].reshape(*shape, *flat.shape[1:])
            first = stop

    def own(self, flat: jax.Array) -> list[jax.Array]:
        """Cut a flat array into the parts of this member, (units, k, g, ...)."""
        return [self._own(values) for _, values in self.cut(flat)]

    def signed(self, flat: jax.Array) -> jax.Array:
        """The signed sum by draw: the difference within a pair."""
        return joined(
            [
                (
                    values[:, :, 0] - values[:, :, 1]
                    if part.signs == 2
                    else values[:, :, 0]
                ).ravel()
                for part, values in self.cut(flat)
            ]
        )

    def by_unit(self, flat: jax.Array) -> jax.Array:
        """The sum over the evaluations of each unit."""
        return joined([values.sum((2, 3)).ravel() for _, values in self.cut(flat)])

    def by_group(self, flat: jax.Array) -> jax.Array:
        """The sum over each group of this member."""
        return joined(
            [
                values.reshape(part.groups, -1).sum(1)
                for part, values in zip(self.parts, self.own(flat), strict=True)
            ]
        )

    @functools.cached_property
    def unit_shares(self) -> float:
        """Σp² over units, for their shares p of the evaluations that count."""
        return float(np.square(self.sizes / self.num_samples).sum())

    @functools.cached_property
    def group_shares(self) -> float:
        """Σp² over groups, likewise."""
        parts = [part for part in self.parts for _ in range(self.members)]
        sizes = [
            real.reshape(part.groups, -1).sum(1)
            for part, real in zip(parts, self._real_of_members, strict=True)
        ]
        return float(np.square(np.concatenate(sizes) / self.num_samples).sum())


def joined(parts: list[Any]) -> Any:
    """The trees, concatenated along the first axis."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
