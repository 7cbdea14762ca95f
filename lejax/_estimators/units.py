"""How J evaluations are divided: into units, over devices, in groups and chunks.

A unit is all evaluations that share the numbers of one draw: copies of it under random
signs, each used once or as an antithetic pair. Units are independent, and known by
their number alone: neither chunks nor devices change a sample.
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

    Its units go by groups, a group by chunks, and a chunk has so many of them; of
    groups of one chunk several are made at once.

    Attributes:
        start: the number of the first unit, of the first member.
        stop: from this number on units only fill up.
        share: how many units lie between those of a member and those of the next.
        length: how many units of a member are in this part.
        signs: k, 2 for antithetic pairs.
        copies: g.
        odd: whether the last unit is a single evaluation.
        groups: how many groups there are.
        chunks: how many chunks a group has.
        size: how many units a chunk has.
        at_once: how many groups are made at once.
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
        """How many units a member makes, with those that fill up."""
        return self.groups * self.chunks * self.size


@dataclasses.dataclass(frozen=True)
class Units:
    """All evaluations of an update, those of all members of an axis.

    Arrays of all of them are flat: by part, member, unit, sign and copy.

    Attributes:
        parts: of different kinds.
        axis_name: of the members that share them; None without.
        members: how many these are.
    """

    parts: tuple[Part, ...]
    axis_name: str | None
    members: int

    @functools.cached_property
    def real(self) -> np.ndarray | None:
        """Which evaluations count, while others fill up; None if all do."""
        real = np.concatenate([real.ravel() for real in self._real_of_members])
        return None if real.all() else real

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """How many evaluations count in every unit."""
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
        """The same of a part of member i, (units, k, g)."""
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
        """The losses, +inf where an evaluation only fills up."""
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
        """What is this member's."""
        if self.axis_name is None:
            return of_members[0]
        return of_members[member(self.axis_name)]

    def all_of(self, own: list[jax.Array]) -> jax.Array:
        """Flat, from what each member has: (units, k, g, ...) of every part."""
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
        """The converse, for all members: (members, units, k, g, ...) of every part."""
        first = 0
        for part in self.parts:
            shape = self.members, part.units, part.signs, part.copies
            stop = first + math.prod(shape)
            yield part, flat[first:stop].reshape(*shape, *flat.shape[1:])
            first = stop

    def own(self, flat: jax.Array) -> list[jax.Array]:
        """The same for this member, (units, k, g, ...)."""
        return [self._own(values) for _, values in self.cut(flat)]

    def signed(self, flat: jax.Array) -> jax.Array:
        """Σ±, by draw: the difference of the two of a pair."""
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
        """The sum over the evaluations of every unit."""
        return joined([values.sum((2, 3)).ravel() for _, values in self.cut(flat)])

    def by_group(self, flat: jax.Array) -> jax.Array:
        """The sum over every group of this member."""
        return joined(
            [
                values.reshape(part.groups, -1).sum(1)
                for part, values in zip(self.parts, self.own(flat), strict=True)
            ]
        )

    @functools.cached_property
    def unit_shares(self) -> float:
        """Σp² of the shares p of units in the evaluations that count."""
        return float(np.square(self.sizes / self.num_samples).sum())

    @functools.cached_property
    def group_shares(self) -> float:
        """The same of groups."""
        parts = [part for part in self.parts for _ in range(self.members)]
        sizes = [
            real.reshape(part.groups, -1).sum(1)
            for part, real in zip(parts, self._real_of_members, strict=True)
        ]
        return float(np.square(np.concatenate(sizes) / self.num_samples).sum())


def joined(parts: list[Any]) -> Any:
    """Trees end to end; one alone is as it is."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
