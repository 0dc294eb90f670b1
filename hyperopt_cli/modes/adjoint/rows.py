"""A state as a row of bytes, and back: same bits, same strides; and standing memory for many such rows."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hyperopt_cli.dynamics.dynamics import State

# Kernels may choose their order of summation by the alignment of their operands: every tensor begins where one of
# torch's own would.
ALIGNMENT = 64
MIN_ROWS, SLAB_BYTES = 8, 2**26


class _Place(NamedTuple):
    """Where a tensor lies in the row, and how its numbers lie in it."""

    begin: int
    end: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class RowLayout:
    """How a state lies in a row of bytes.

    Attributes:
        num_bytes: of the row.
    """

    def __init__(self, state: State) -> None:
        leaves, self._spec = tree_flatten(state)
        self._places: list[_Place] = []
        self.num_bytes = 0
        for x in leaves:
            begin = -(-self.num_bytes // ALIGNMENT) * ALIGNMENT
            self.num_bytes = begin + x.numel() * x.element_size()
            # what is spread out or overlaps (an expanded slot) comes back dense
            stride = torch.empty_like(x, device="meta").stride()
            self._places.append(_Place(begin, self.num_bytes, x.shape, stride, x.dtype))

    def views(self, row: Tensor) -> State:
        """Returns the state whose tensors lie in `row`, uint8, [num_bytes or more]."""
        parts = [
            row[place.begin : place.end].view(place.dtype).as_strided(place.shape, place.stride)
            for place in self._places
        ]
        state: State = tree_unflatten(parts, self._spec)
        return state

    def chunks(self, state: State) -> Iterator[tuple[int, memoryview]]:
        """Yields the bytes of a state on the host, by tensor, and where each begins; dense tensors are not copied."""
        for place, x in zip(self._places, tree_flatten(state)[0], strict=True):
            if x.stride() != place.stride:
                x = torch.empty_strided(place.shape, place.stride, dtype=place.dtype).copy_(x)
            flat = x.detach().as_strided((x.numel(),), (1,))
            yield place.begin, flat.view(torch.uint8).numpy().data


class Rows:
    """Standing memory for the rows of many states, taken when first needed, a slab of several rows at a time.

    A slab is large enough to be given back to the system whole, and for torch, which rounds pinned memory up to a power
    of two bytes, to waste little of it.

    Args:
        num_rows: how many rows there may be.
        pinned: in memory that a CUDA device copies from and to by itself.
    """

    def __init__(self, num_rows: int, pinned: bool = False) -> None:
        self._num_rows, self._pinned = num_rows, pinned
        self._slabs: list[Tensor] = []

    def row(self, index: int, num_bytes: int) -> Tensor:
        """Returns the bytes of that row, uint8, [num_bytes or a little more]; every row is of one size.

        Rows are asked for in turn: none before the one above it has been.
        """
        width = max(1, -(-num_bytes // ALIGNMENT)) * ALIGNMENT
        rows_a_slab = min(self._num_rows, max(MIN_ROWS, SLAB_BYTES // width))
        slab, row = divmod(index, rows_a_slab)
        if slab == len(self._slabs):
            num_rows = min(rows_a_slab, self._num_rows - index)
            self._slabs.append(torch.empty(num_rows, width, dtype=torch.uint8, pin_memory=self._pinned))
        return self._slabs[slab][row]
