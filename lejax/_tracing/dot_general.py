"""The axes of a matrix product: contracted or free, and their places in the result.

One operand is the kernel, a leaf of the parameters. The other operand holds the rows
that are multiplied with the kernel.
"""

from __future__ import annotations

from typing import NamedTuple

from lejax._tracing.program import Operation, Program
from lejax._tracing.views import UnknownUseError


class ProductAxes(NamedTuple):
    """The axes of the operands and of the result of a product of rows and a kernel.

    Attributes:
        kernel_contracted: the contracted axes of the kernel.
        kernel_free: its other axes.
        rows_contracted: the axis of the rows for each of `kernel_contracted`.
        rows_free: the other axes of the rows.
        result_of_kernel: the axis of the result for each of `kernel_free`.
        result_of_rows: the axis of the result for each of `rows_free`.
    """

    kernel_contracted: tuple[int, ...]
    kernel_free: tuple[int, ...]
    rows_contracted: tuple[int, ...]
    rows_free: tuple[int, ...]
    result_of_kernel: tuple[int, ...]
    result_of_rows: tuple[int, ...]


def read_dot_general(
    program: Program, operation: Operation, kernel: int
) -> ProductAxes:
    """The axes of a `dot_general` whose operand number `kernel` (0 or 1) is the kernel.

    Raises:
        UnknownUseError: it has batch dimensions.
    """
    contracting, batching = operation.params["dimension_numbers"]
    if batching[0]:
        raise UnknownUseError("used by dot_general with batch dimensions")
    free = [
        tuple(
            axis
            for axis in range(len(program.shapes[number].shape))
            if axis not in contracted
        )
        for number, contracted in zip(operation.inputs, contracting, strict=True)
    ]
    # The result has the free axes of the first operand, then those of the second.
    in_result = (
        tuple(range(len(free[0]))),
        tuple(range(len(free[0]), len(free[0]) + len(free[1]))),
    )
    rows = 1 - kernel
    return ProductAxes(
        kernel_contracted=tuple(contracting[kernel]),
        kernel_free=free[kernel],
        rows_contracted=tuple(contracting[rows]),
        rows_free=free[rows],
        result_of_kernel=in_result[kernel],
        result_of_rows=in_result[rows],
    )
