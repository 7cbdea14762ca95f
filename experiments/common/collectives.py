"""The data that a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax.numpy as jnp

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_OPERATION = re.compile(rf"= (.*?) ({KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_DTYPES = {"pred": "bool", "bf16": "bfloat16", "f": "float", "s": "int", "u": "uint"}


class Collective(NamedTuple):
    """One exchange.

    Attributes:
        kind: its name in HLO.
        numbers: the number of entries of its results.
        size: the size of its results in bytes.
    """

    kind: str
    numbers: int
    size: int


def collectives(program: str) -> list[Collective]:
    """All exchanges in the text of a compiled program."""
    found = []
    for line in program.splitlines():
        match = _OPERATION.search(line)
        if match is None:
            continue
        numbers = size = 0
        for name, shape in _ARRAY.findall(match[1]):
            count = math.prod(map(int, shape.split(","))) if shape else 1
            dtype = _DTYPES.get(name) or _DTYPES[name[0]] + name[1:]
            numbers += count
            size += count * jnp.dtype(dtype).itemsize
        found.append(Collective(match[2], numbers, size))
    return found
