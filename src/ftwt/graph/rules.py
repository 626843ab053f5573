"""How each operation passes on which channels are active and which are needed.

A rule sees its sources as *activities*: bool tensors (N, *layout), of the rank of the value they
describe and of size 1 along each dimension in which they do not vary, or None for "all active". It
returns the activity of its own value, and, on the way back, what it needs of each source in the
same form. The value of a tuple-valued operation has a tuple of activities and a dict of needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Activity = Any  # Tensor | None | tuple[Activity, ...]
Masks = Mapping[str, Tensor]
Layout = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """The base rule, for what maps zero to zero channel by channel: activations, pools, dropout.

    `sources` names the nodes whose activities the rule sees, `layouts` gives the layouts of these.
    """

    sources: tuple[str, ...]
    layouts: tuple[Layout, ...]

    @property
    def layout(self) -> Any:
        """Layout of the value: of its activity without the sample dimension."""
        return self.layouts[0]

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """Return the activity of the value, given those of the sources."""
        return active[0]

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """Return what is needed of each source, given what is needed of the value."""
        return [need]


class Renew(Rule):
    """A zero channel becomes non-zero, channel by channel: batch norm, bias, sigmoid."""

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """All channels are active again."""
        return None


@dataclass(frozen=True)
class Mix(Rule):
    """Every output may depend on every input: layer norm, attention, and what has no rule."""

    mixed: Layout

    @property
    def layout(self) -> Any:
        """Layout of the value."""
        return self.mixed

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """All channels are active again."""
        return None

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """All of every source is needed."""
        return [None] * len(self.sources)


@dataclass(frozen=True)
class Contract(Rule):
    """A convolution or a linear layer: each output sums over the inputs of its group.

    `dim` is where its channels lie: 1 for a convolution, -1 for a linear layer. What varies along
    other dimensions counts as active, or needed, where it is so anywhere.
    """

    in_channels: int
    out_channels: int
    groups: int
    bias: bool
    dim: int
    contracted: Layout

    @property
    def layout(self) -> Any:
        """Layout of the value."""
        return self.contracted

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """Without a bias, an output is active when any input of its group is."""
        if self.bias or active[0] is None:
            return None
        inputs = self._grouped(active[0], self.in_channels)
        return self._spread(inputs, self.out_channels, self.contracted)

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """An input is needed when any output of its group is."""
        if need is None:
            return [None]
        outputs = self._grouped(need, self.out_channels)
        return [self._spread(outputs, self.in_channels, self.layouts[0])]

    def pairs(self, active: Activity, need: Activity) -> Tensor | int:
        """Count the pairs of active input and needed output in the same group, for each sample."""
        inputs = self._count(active, self.in_channels)
        outputs = self._count(need, self.out_channels)
        pairs = inputs * outputs
        return pairs.sum(1) if isinstance(pairs, Tensor) else pairs * self.groups

    def _count(self, activity: Activity, channels: int) -> Tensor | int:
        if activity is None:
            return channels // self.groups
        return self._grouped(activity, channels).sum(2)

    def _grouped(self, activity: Tensor, channels: int) -> Tensor:
        """Say (N, groups, channels of a group) which channels are active anywhere."""
        return per_channel(activity, self.dim, channels).reshape(len(activity), self.groups, -1)

    def _spread(self, grouped: Tensor, channels: int, layout: Layout) -> Activity:
        some = grouped.sum(2) > 0  # any() is ten times slower
        if bool(some.all()):
            return None
        spread = some.repeat_interleave(channels // self.groups, dim=1)
        missing = [1] * (len(layout) - 1)
        shape = (channels, *missing) if self.dim == 1 else (*missing, channels)
        spread = fit(spread.reshape(-1, *shape), layout)
        return spread.expand(-1, *layout)


@dataclass(frozen=True)
class Reduce(Rule):
    """A mean, sum or maximum over dimensions (without the sample dimension, ascending)."""

    dims: tuple[int, ...]
    keepdim: bool

    @property
    def layout(self) -> Any:
        """Layout of the value."""
        kept = [1 if i in self.dims else size for i, size in enumerate(self.layouts[0], 1)]
        return tuple(
            kept if self.keepdim else [s for i, s in enumerate(kept, 1) if i not in self.dims]
        )

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """Active where anything that was reduced is."""
        if active[0] is None:
            return None
        kept = active[0].sum(self.dims, keepdim=True) > 0
        return kept.reshape(len(kept), *self.layout)

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """All that goes into a needed value is needed."""
        if need is None:
            return [None]
        kept = [1 if i in self.dims else size for i, size in enumerate(self.layouts[0], 1)]
        return [need.reshape(len(need), *kept).expand(-1, *self.layouts[0])]


@dataclass(frozen=True)
class Move(Rule):
    """Data changes place only: views, slices, concatenation, padding, shuffles.

    `places` says for each output (or each of several) which input channel it is, counted from 1
    through all sources; 0 is a constant zero.
    """

    places: Any  # Tensor (*layout), or a tuple of them

    @property
    def layout(self) -> Any:
        """Layout of the value, or of each of its parts."""
        if isinstance(self.places, tuple):
            return tuple(tuple(place.shape) for place in self.places)
        return tuple(self.places.shape)

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """Follow each channel to its place."""
        known = [activity for activity in active if activity is not None]
        samples = max(map(len, known), default=1)  # one for all samples, or one each
        columns = [torch.zeros(samples, 1, dtype=torch.bool)]
        for activity, layout in zip(active, self.layouts, strict=True):
            if activity is None:
                activity = torch.ones(1, dtype=torch.bool)
            columns.append(activity.expand(samples, *layout).reshape(samples, -1))
        table = torch.cat(columns, 1)

        def moved(place: Tensor) -> Activity:
            if not known and bool((place > 0).all()):
                return None
            return table[:, place.flatten()].reshape(samples, *place.shape)

        if isinstance(self.places, tuple):
            return tuple(moved(place) for place in self.places)
        return moved(self.places)

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """A channel is needed when any of its places is."""
        parts = need if isinstance(self.places, tuple) else {0: need}
        places = self.places if isinstance(self.places, tuple) else (self.places,)
        if not isinstance(parts, dict):  # the tuple as a whole is needed
            parts = dict.fromkeys(range(len(places)))
        samples = max([1, *(len(part) for part in parts.values() if part is not None)])
        total = 1 + sum(math.prod(layout) for layout in self.layouts)
        table = torch.zeros(samples, total, dtype=torch.int32)
        for index, part in parts.items():
            place = places[index]
            needed = torch.ones(1, dtype=torch.bool) if part is None else part
            needed = needed.expand(samples, *place.shape).reshape(samples, -1)
            table.index_add_(1, place.flatten(), needed.int())
        result, start = [], 1
        for layout in self.layouts:
            end = start + math.prod(layout)
            result.append((table[:, start:end] > 0).reshape(samples, *layout))
            start = end
        return result


@dataclass(frozen=True)
class Select(Rule):
    """One part of a tuple."""

    index: int

    @property
    def layout(self) -> Any:
        """Layout of that part."""
        return self.layouts[0][self.index]

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """Activity of that part."""
        return None if active[0] is None else active[0][self.index]

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """Only that part is needed."""
        return [{self.index: need}]


@dataclass(frozen=True)
class Combine(Rule):
    """A sum (active where any term is) or a product (active where all factors are)."""

    product: bool

    @property
    def layout(self) -> Any:
        """The sources' layouts, broadcast."""
        return tuple(torch.broadcast_shapes(*self.layouts))

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """Combine the sources' activities."""
        known = [activity for activity in active if activity is not None]
        if not known or (len(known) < len(active) and not self.product):
            return None
        result = known[0]
        for activity in known[1:]:
            result = result & activity if self.product else result | activity
        return result.expand(-1, *self.layout)  # one channel may have met many

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """A factor is needed only where the other factors are active."""
        result = []
        for index, layout in enumerate(self.layouts):
            wanted = need
            if self.product:
                for other, activity in enumerate(active):
                    if other != index and activity is not None:
                        wanted = activity if wanted is None else wanted & activity
            result.append(fit(wanted, layout))
        return result


@dataclass(frozen=True)
class Silence(Rule):
    """A mask on the last source: a gate (of a unit's input and output), or an inherited mask."""

    unit: str

    @property
    def gate(self) -> bool:
        """Whether this is the gate itself, whose value is (masked output, what was decided)."""
        return len(self.sources) == 2

    @property
    def layout(self) -> Any:
        """Layout of the masked output."""
        return (self.layouts[-1], ()) if self.gate else self.layouts[-1]

    def forward(self, active: Sequence[Activity], masks: Masks) -> Activity:
        """Only unmasked channels stay active."""
        masked = self._and(active[-1], masks)
        return (masked, None) if self.gate else masked

    def backward(self, need: Activity, active: Sequence[Activity], masks: Masks) -> list[Activity]:
        """Only unmasked channels are needed; a gate that reads its input needs all of it."""
        if not self.gate:
            return [self._and(need, masks)]
        return [None, self._and(need[0], masks)]

    def _and(self, activity: Activity, masks: Masks) -> Activity:
        if self.unit not in masks:
            return activity
        mask = masks[self.unit]
        mask = mask.reshape(*mask.shape, *[1] * (len(self.layouts[-1]) - 1))
        return mask if activity is None else activity & mask


def fit(need: Activity, layout: Layout) -> Activity:
    """Bring a need to a source's layout: reduce it where that was broadcast, else spread it."""
    if need is None or need.dim() != len(layout) + 1:
        return None
    dims = [i for i, size in enumerate(layout, 1) if size == 1 and need.shape[i] > 1]
    return (need.sum(dims, keepdim=True) > 0 if dims else need).expand(-1, *layout)


def per_channel(activity: Tensor, dim: int, channels: int) -> Tensor:
    """Say (N, channels) which channels, those along `dim`, are active anywhere."""
    moved = activity.movedim(dim, 1).reshape(len(activity), activity.shape[dim], -1)
    anywhere = moved.sum(2) > 0 if moved.shape[2] > 1 else moved.squeeze(2)
    return anywhere.expand(-1, channels)


def join(first: Activity, second: Activity) -> Activity:
    """Unite what two users need of the same value."""
    if isinstance(first, dict) and isinstance(second, dict):
        shared = {
            index: join(first[index], second[index]) for index in first.keys() & second.keys()
        }
        return first | second | shared
    return None if first is None or second is None else first | second
