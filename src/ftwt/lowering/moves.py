"""Where elements went: data movements are run on element numbers instead of being understood.

Views, slices, concatenation, permutations and padding compute nothing. Run on an array that holds
the number of each element, they say themselves which element of which map lies where; and so any
spelling of a channel shuffle is the same shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SAMPLES = 3  # numbered together: a movement that mixes samples shows, and so, beside PyTorch with
# one image or two, does a number that is how many images there are
_STEP = 4  # between the numbers of elements, for those of a second sample and a third
_MAP = 2**34  # number of the first element of map 0, and the distance between maps


@dataclass(frozen=True)
class Value:
    """A map, as torch sees it: `shape` is (C, H, W), or (C,) of a vector."""

    map: int
    shape: tuple[int, ...]

    @property
    def numbers(self) -> Tensor:
        """(SAMPLES, *shape) numbers of its elements."""
        count = int(np.prod(self.shape))
        first = (self.map + 1) * _MAP
        number = first + torch.arange(0, _STEP * count, _STEP, dtype=torch.float64)
        return torch.stack([number + n for n in range(SAMPLES)]).reshape(SAMPLES, *self.shape)


@dataclass(frozen=True, eq=False)
class Moved:
    """Elements of maps in new places, and zeros: `numbers` says which lie where."""

    numbers: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape for one sample."""
        return tuple(self.numbers.shape[1:])


@dataclass(frozen=True)
class Places:
    """One sample's elements: the `maps` they come from (-1: zero) and their `elements` there."""

    maps: np.ndarray
    elements: np.ndarray

    @property
    def sources(self) -> list[int]:
        """The maps, in the order in which they appear."""
        found, first = np.unique(self.maps, return_index=True)
        return [int(found[i]) for i in np.argsort(first) if found[i] >= 0]


@dataclass(frozen=True)
class Channels:
    """Whole channels of maps, every `steps[map]`-th row and column of them.

    Args:
        maps: (K,) map of each channel, -1 for zeros.
        channels: (K,) channel there.
        steps: Map -> step of rows and of columns.
    """

    maps: np.ndarray
    channels: np.ndarray
    steps: dict[int, tuple[int, int]]


def places(moved: Moved) -> Places | None:
    """Read numbers; None if they were changed, or if samples were mixed."""
    numbers = moved.numbers.numpy().astype(np.int64)
    one = numbers[0]
    if len(numbers) != SAMPLES or ((one != 0) & (one < _MAP)).any() or (one % _STEP).any():
        return None
    if any((numbers[n] != one + n * (one != 0)).any() for n in range(1, SAMPLES)):
        return None
    return Places(one // _MAP - 1, one % _MAP // _STEP)


def with_part(
    whole: Value | Moved, part: Value | Moved, new: Value | Moved
) -> Value | Moved | None:
    """Put new elements in the place of some that others share: an operation in place on a view.

    Args:
        whole: Where they may lie.
        part: What they were.
        new: What they are now, of the same shape.

    Returns:
        What `whole` is now; None if the shapes differ.
    """
    if whole is part:
        return new
    if part.shape != new.shape:
        return None
    before, order = part.numbers.flatten().sort()
    numbers = whole.numbers
    place = torch.searchsorted(before, numbers.contiguous()).clamp_(max=len(before) - 1)
    found = before[place] == numbers
    if not found.any():
        return whole
    return Moved(torch.where(found, new.numbers.flatten()[order][place], numbers))


def without_border(moved: Moved, of: float = 0) -> tuple[Moved, tuple[int, int, int, int]]:
    """Take rows and columns that hold nothing but `of` from a map's border.

    Returns:
        What is left, and how many were taken above, left, below and right.
    """
    zero = (moved.numbers == of).all(1).all(0)
    rows, columns = ((~zero.all(dim)).nonzero().flatten() for dim in (1, 0))
    if not len(rows):
        return moved, (0, 0, 0, 0)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    taken = (int(top), int(left), len(zero) - int(bottom), zero.shape[1] - int(right))
    return (Moved(moved.numbers[:, :, top:bottom, left:right]) if any(taken) else moved), taken


def channels(places: Places, shapes: list[tuple[int, int, int]]) -> Channels | None:
    """Read (C, H, W) places as whole channels; None if they are none.

    Args:
        places: Of a map's elements.
        shapes: Shapes of all maps.
    """
    maps, first = places.maps[:, 0, 0], places.elements[:, 0, 0]
    if (places.maps != maps[:, None, None]).any():
        return None
    index = np.zeros(len(maps), np.int64)
    steps = {}
    height, width = places.maps.shape[1:]
    for source in places.sources:
        here = maps == source
        _, rows, columns = shapes[source]
        found = places.elements[here]
        index[here] = first[here] // (rows * columns)
        # of a single row or column, the step is anything that leads out of the map
        down = (found[0, 1, 0] - found[0, 0, 0]) // columns if height > 1 else rows
        right = found[0, 0, 1] - found[0, 0, 0] if width > 1 else columns
        grid = np.arange(height)[:, None] * down * columns + np.arange(width) * right
        if down < 1 or right < 1 or (height - 1) * down >= rows or (width - 1) * right >= columns:
            return None
        if (found != index[here][:, None, None] * rows * columns + grid).any():
            return None
        steps[source] = (int(down), int(right))
    return Channels(maps, index, steps)
