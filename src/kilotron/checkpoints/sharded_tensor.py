"""ShardedTensor: one whole tensor whose pieces lie in several stored tensors. Knows no file format.

A piece is a box of the whole, found as a box of a stored tensor. Pieces are checked to fill the whole exactly before
anything is read, and a slice reads the pieces that it touches and no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from kilotron.checkpoints.damage import broken
from kilotron.checkpoints.inert_values import StoredTensor
from kilotron.checkpoints.safetensors_file import TORCH_NAME_OF_DTYPE
from kilotron.checkpoints.safetensors_header import BITS_OF_DTYPE, MAX_COUNT, TensorInfo

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
MAX_CELLS = 50_000_000  # of the grid that all edges of a tensor's pieces make
MIN_VIEWED_ELEMENTS = 65_536  # smaller ones are copied, so that they do not keep a file open
MAX_SPLIT_PIECES = 10_000_000
MAX_SPLIT = 100_000  # layers or experts in one stack


class Stored(Protocol):
    """A tensor in a file."""

    @property
    def path(self) -> Path: ...
    def view(self) -> "torch.Tensor":
        """The tensor, as a view of its file. Raises BrokenCheckpointError."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a whole tensor, which is the box of the same shape at `origin` in `stored[leading]`."""

    stored: Stored
    offsets: Shape
    shape: Shape
    origin: Shape
    leading: Shape = ()

    def at(self, index: int) -> Self:
        """What of it has this index on the first axis, without that axis."""
        position = index - self.offsets[0] + self.origin[0]
        return replace(
            self,
            offsets=self.offsets[1:],
            shape=self.shape[1:],
            origin=self.origin[1:],
            leading=(*self.leading, position),
        )

    def moved(self, axis: int, distance: int) -> Self:
        """The same piece in a whole where it lies further along an axis."""
        offsets = list(self.offsets)
        offsets[axis] += distance
        return replace(self, offsets=tuple(offsets))

    def rows(self, start: int, stop: int) -> Self:
        """A part of it along the first axis, counted from its own start; it then lies at the start of the whole."""
        return replace(
            self,
            offsets=(0, *self.offsets[1:]),
            shape=(stop - start, *self.shape[1:]),
            origin=(self.origin[0] + start, *self.origin[1:]),
        )

    def read(self, starts: Shape, stops: Shape) -> "torch.Tensor":
        """A box inside of it, in coordinates of the whole, as a view."""
        box = zip(starts, stops, self.offsets, self.origin, strict=True)
        parts = tuple(slice(start - offset + origin, stop - offset + origin) for start, stop, offset, origin in box)
        return self.stored.view()[self.leading][parts]


class ShardedTensor:
    """A tensor of `dtype` (safetensors' name, such as "BF16") and `shape`, filled exactly by its pieces."""

    def __init__(self, name: str, dtype: str, shape: Shape, pieces: Sequence[Piece]) -> None:
        """`name` is that of the files, for messages."""
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.pieces = pieces

    @classmethod
    def whole(cls, name: str, tensor: StoredTensor) -> Self:
        """A tensor that lies in one piece."""
        start = (0,) * len(tensor.shape)
        return cls(name, tensor.dtype, tensor.shape, [Piece(tensor, start, tensor.shape, start)])

    @classmethod
    def checked(cls, name: str, dtype: str, shape: Shape, pieces: Sequence[Piece], file: Path) -> Self:
        """Of pieces that nobody has checked.

        Raises:
            BrokenCheckpointError: they overlap, leave a gap or reach outside; names `file`, tensor and place.
        """
        if prod(max(size, 1) for size in shape) >= MAX_COUNT:
            raise broken(file, tensor=name, expected="a shape that memory can address", found=f"shape {shape}")
        if trouble := _trouble(shape, pieces):
            raise broken(file, tensor=name, expected=f"pieces that fill shape {shape} exactly", found=trouble)
        return cls(name, dtype, shape, pieces)

    @property
    def info(self) -> TensorInfo:
        """What is told of it; of the files it lies in, the first."""
        file = self.pieces[0].stored.path if self.pieces else Path()
        return TensorInfo(file, self.dtype, self.shape, prod(self.shape) * BITS_OF_DTYPE[self.dtype] // 8)

    def split(self) -> "list[ShardedTensor]":
        """One tensor for each index of the first axis.

        Raises:
            BrokenCheckpointError: it has no such axis, or more indexes than a model has layers.
        """
        if not self.shape or self.shape[0] > MAX_SPLIT:
            expected = f"a stack of at most {MAX_SPLIT} tensors"
            raise broken(self.info.file, tensor=self.name, expected=expected, found=f"shape {self.shape}")
        if sum(piece.shape[0] for piece in self.pieces) > MAX_SPLIT_PIECES:
            expected = f"at most {MAX_SPLIT_PIECES} pieces of layers"
            raise broken(self.info.file, tensor=self.name, expected=expected, found=f"{len(self.pieces)} deep ones")
        pieces: list[list[Piece]] = [[] for _ in range(self.shape[0])]
        for piece in self.pieces:
            for index in range(piece.offsets[0], piece.offsets[0] + piece.shape[0]):
                pieces[index].append(piece.at(index))
        return [ShardedTensor(self.name, self.dtype, self.shape[1:], parts) for parts in pieces]

    def read_slice(self, index: tuple[slice, ...] = ()) -> "torch.Tensor":
        """A box of the tensor, all of it by default: a view where one piece holds it, else a copy.

        The slices must lie inside, step 1; missing ones mean all of an axis. Raises BrokenCheckpointError when a file
        has changed or a piece is not what the checkpoint says.
        """
        import torch

        padded = (*index, *(slice(None) for _ in self.shape[len(index) :]))
        bounds = [part.indices(size)[:2] for part, size in zip(padded, self.shape, strict=True)]
        starts, stops = tuple(start for start, _ in bounds), tuple(stop for _, stop in bounds)
        sizes = tuple(stop - start for start, stop in bounds)
        touched = [piece for piece in self.pieces if _overlaps(piece, starts, stops)]
        if len(touched) == 1 and prod(sizes) >= MIN_VIEWED_ELEMENTS:
            return touched[0].read(starts, stops)
        result = torch.empty(sizes, dtype=getattr(torch, TORCH_NAME_OF_DTYPE[self.dtype]))
        for piece in touched:
            first = tuple(map(max, starts, piece.offsets))
            last = tuple(
                min(stop, offset + size) for stop, offset, size in zip(stops, piece.offsets, piece.shape, strict=True)
            )
            target = tuple(
                slice(low - start, high - start) for low, high, start in zip(first, last, starts, strict=True)
            )
            result[target].copy_(piece.read(first, last))
        return result


def _overlaps(piece: Piece, starts: Shape, stops: Shape) -> bool:
    box = zip(piece.offsets, piece.shape, starts, stops, strict=True)
    return all(offset < stop and start < offset + size for offset, size, start, stop in box)


def _trouble(shape: Shape, pieces: Sequence[Piece]) -> str | None:
    """What keeps the pieces from filling the shape: counts, on the grid that all their edges make, who lies where."""
    for piece in pieces:
        if len(piece.shape) != len(shape) or len(piece.offsets) != len(shape):
            return f"a piece of shape {piece.shape} at {piece.offsets}"
        if any(offset + size > whole for offset, size, whole in zip(piece.offsets, piece.shape, shape, strict=True)):
            return f"a piece of shape {piece.shape} at {piece.offsets}, which reaches outside"
    if 0 in shape:
        return None
    edges = [
        sorted({0, size} | {edge for piece in pieces for edge in (piece.offsets[axis], _end(piece, axis))})
        for axis, size in enumerate(shape)
    ]
    if prod(len(places) for places in edges) > MAX_CELLS:
        return f"{len(pieces)} pieces whose edges do not meet"
    cell_of_edge = [{edge: cell for cell, edge in enumerate(places)} for places in edges]
    is_filled = np.zeros([len(places) - 1 for places in edges], dtype=np.bool_)
    for piece in pieces:
        cells = (
            slice(cell_of_edge[axis][offset], cell_of_edge[axis][_end(piece, axis)])
            for axis, offset in enumerate(piece.offsets)
        )
        box = is_filled[tuple(cells)]
        if box.any():  # at once, so that no cell is looked at more than twice
            return f"two pieces at {piece.offsets}, one of shape {piece.shape}"
        box[...] = True
    if is_filled.all():
        return None
    gap = tuple(edges[axis][cell] for axis, cell in enumerate(np.argwhere(~is_filled)[0]))
    return f"no piece at {gap}"


def _end(piece: Piece, axis: int) -> int:
    return piece.offsets[axis] + piece.shape[axis]
