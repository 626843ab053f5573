"""Networks with filters taken out for good, by Torch-Pruning: the static rival of our gates.

Torch-Pruning finds the layers whose channels belong together (everything that a residual stream
passes, say), ranks such groups of channels over the whole network, and takes the least important
out. As in the library's own benchmarks that is done in many small steps, until the MACs are met.
Every layer keeps a share of its channels: a ranking of all layers at once, by magnitude say, would
leave first layers of wide networks a channel or two. The library has a limit of its own
(`max_pruning_ratio`), which counts from the network that a pruner begins with, here one that may be
pruned already, and holds only after the step that went past it.
What was taken out is a `History`, which makes the same network again from the dense one.

Source: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ftwt.models.resnet import Subsample

Importance = Literal["magnitude", "taylor"]
History = list[tuple[str, bool, list[int]]]  # layer, whether its outputs went, which of them

LIMIT = 0.8  # the most that a layer may lose, as a share of its channels
STEPS = 400  # of a whole path, as in the library's benchmarks
REFRESH = 20  # steps for which gradients are good
CHUNK = 125  # images of a backward pass
_LAYERS = (nn.Conv2d, nn.Linear)


class Shortcut(nn.Module):
    """A parameter-free shortcut whose inputs and outputs can be taken out.

    ResNet's `Subsample` appends a fixed number of zero channels, so neither side could lose one.

    Args:
        in_channels: Channels of the input.
        channels: Zero channels to append.
        stride: Step between the pixels kept.
    """

    sources: Tensor

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.stride = in_channels, stride
        sources = torch.arange(in_channels + channels).clamp(max=in_channels)
        self.register_buffer("sources", sources)  # (outputs,): an input, or the zeros after them

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, 1))[:, self.sources]


class _ShortcutPruner(torch_pruning.BasePruningFunc):
    """What the library must know of a `Shortcut`: its two sides lose channels independently."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        kept = torch.ones_like(layer.sources, dtype=torch.bool)
        kept[idxs] = False
        layer.sources = layer.sources[kept]
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        kept = torch.ones(layer.in_channels + 1, dtype=torch.bool, device=layer.sources.device)
        kept[idxs] = False
        layer.in_channels -= len(idxs)
        places = (kept.cumsum(0) - 1).where(kept, layer.in_channels)
        layer.sources = places[layer.sources]
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return len(layer.sources)

    def get_in_channels(self, layer: nn.Module) -> int:
        return layer.in_channels


class _Limit:
    """How many outputs every layer of a pruner's network keeps, whatever the ranking says.

    Args:
        pruner: Of a copy of the dense network, pruned already or not.
        dense: The network whose channels `LIMIT` is a share of.
    """

    def __init__(self, pruner: torch_pruning.pruner.BasePruner, dense: nn.Module) -> None:
        self._rank, self._takes_outputs = pruner.importance, pruner.DG.is_out_channel_pruning_fn
        self._least = {
            pruner.model.get_submodule(name): math.ceil((1 - LIMIT) * len(layer.weight))
            for name, layer in dense.named_modules()
            if isinstance(layer, _LAYERS)
        }

    def importance(self, group: torch_pruning.Group) -> Tensor | None:
        """Rank a group's channels, those that have to stay behind all others."""
        scores = self._rank(group)
        if scores is not None and (losing := self._losing(group)):
            stay = min(max(self._least[layer] for layer, _ in losing), len(scores))
            scores[scores.topk(stay).indices] = math.inf
        return scores

    def allows(self, group: torch_pruning.Group) -> bool:
        """Whether the layers that would lose a group's channels keep as many as they must.

        The ranking alone does not see to it: once only infinities are left, they are asked for.
        """
        losing = self._losing(group)
        return all(len(layer.weight) - lost >= self._least[layer] for layer, lost in losing)

    def _losing(self, group: torch_pruning.Group) -> list[tuple[nn.Module, int]]:
        return [
            (dependency.target.module, len(which))
            for dependency, which in group
            if dependency.target.module in self._least and self._takes_outputs(dependency.handler)
        ]


@dataclass(frozen=True)
class Task:
    """What is to be pruned, and how channels are ranked.

    Args:
        dense: The network; only copies of it are changed.
        example: An input, (1, C, H, W), on the network's device.
        importance: `magnitude`: squared weights; `taylor`: what the loss would lose to first order.
            Both are summed up over the layers of a group and divided by the group's mean.
        batches: Training images for the gradients of `taylor`.
    """

    dense: nn.Module
    example: Tensor
    importance: Importance = "magnitude"
    batches: Iterable[tuple[Tensor, Tensor]] = ()

    def __post_init__(self) -> None:
        if self.importance not in get_args(Importance):
            options = ", ".join(map(repr, get_args(Importance)))
            raise ValueError(f"importance={self.importance!r}: choose one of {options}")


def prune_to(
    task: Task,
    reduction: float,
    *,
    tolerance: float = 0.003,
    fixed: frozenset[str] = frozenset(),
) -> History:
    """Take channels out until a share of the MACs is gone.

    The last steps are of single channels; groups one channel of which is too much are left alone.

    Args:
        task: What to prune.
        reduction: Share of the MACs, in (0, 1).
        tolerance: How far beside it will do, as a share of the MACs.
        fixed: Layers that keep all their channels.

    Returns:
        What to take out. Where no choice is within the tolerance, the nearest that was found.

    Raises:
        ValueError: The reduction is outside (0, 1) or out of reach.
    """
    if not 0 < reduction < 1:
        raise ValueError(f"reduction={reduction} is outside (0, 1): there is nothing to match")
    reached: History = []
    nearest: tuple[float, History] = (reduction, [])
    most, single = 0.0, False
    while True:
        over: History = []
        for history, got in walk(task, begin=reached, fixed=fixed, single=single):
            most = max(most, got)
            nearest = min(nearest, (abs(got - reduction), history), key=lambda found: found[0])
            if nearest[0] <= tolerance:
                return nearest[1]
            if got > reduction:
                over = history[len(reached) :]
                break
            reached = history
        if not over:
            break
        if single:
            fixed |= {layer for layer, _, _ in over}
        single = True
    if most < reduction:
        raise ValueError(
            f"reduction={reduction:.1%} is out of reach: {most:.1%} is the most that "
            f"Torch-Pruning takes from {type(task.dense).__name__} where every layer keeps "
            f"{1 - LIMIT:.0%} of its channels; match a run that saves less"
        )
    return nearest[1]


def walk(
    task: Task,
    *,
    begin: History | None = None,
    fixed: frozenset[str] = frozenset(),
    single: bool = False,
) -> Iterator[tuple[History, float]]:
    """Take channels out, step by step, the least important first, until no layer may lose more.

    Args:
        task: What to prune.
        begin: What is out already.
        fixed: Layers whose groups keep all their channels.
        single: One channel a step.

    Yields:
        All that is out after a step, and the share of the dense network's MACs that went with it.

    Raises:
        ValueError: Torch-Pruning cannot handle the network.
    """
    last = classifier(task.dense)
    dense = count_macs(task.dense, task.example)
    channels = sum(m.out_channels for m in task.dense.modules() if isinstance(m, nn.Conv2d))
    criterion = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance(p=2),
        "taylor": torch_pruning.importance.GroupTaylorImportance(),
    }[task.importance]
    try:
        network = replay(task, begin or [])
        pruner = torch_pruning.pruner.BasePruner(
            network,
            task.example,
            importance=criterion,
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=channels if single else min(STEPS, channels),
            ignored_layers=[network.get_submodule(name) for name in (last, *fixed)],
            customized_pruners={Shortcut: _ShortcutPruner()},
        )
        limit = _Limit(pruner, task.dense)
        pruner.importance = limit.importance
        before: History = list(begin or [])
        for step in range(pruner.iterative_steps):
            if task.importance == "taylor" and step % REFRESH == 0:
                _gather_gradients(network, task.batches)
            for group in pruner.step(interactive=True):
                if limit.allows(group):
                    group.prune()
            removed = [(n, bool(out), list(which)) for n, out, which in pruner.pruning_history()]
            history = (begin or []) + [entry for entry in removed if entry[2]]
            if len(history) > len(before):
                before = history
                yield history, 1 - count_macs(network, task.example) / dense
    except (AssertionError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"Torch-Pruning cannot prune {type(task.dense).__name__}: {error}"
        ) from error


def replay(task: Task, history: History) -> nn.Module:
    """Return a copy of the dense network, in eval mode, without what a history took out."""
    network = _with_open_shortcuts(copy.deepcopy(task.dense).eval(), task.example)
    graph = torch_pruning.DependencyGraph().build_dependency(
        network, task.example, customized_pruners={Shortcut: _ShortcutPruner()}
    )
    graph.load_pruning_history(list(history))
    return network


def without_filters(network: nn.Module, example: Tensor, kept: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network, in eval mode, without the filters that masks leave out.

    Args:
        network: It computes zeros, or what nobody reads, in these filters.
        example: One input, (1, C, H, W).
        kept: Convolution -> (C,) bool. Those whose channels are added up must have one mask.
    """
    small = _with_open_shortcuts(copy.deepcopy(network).eval(), example)
    for name, mask in kept.items():
        layer = small.get_submodule(name)
        if mask.all() or len(layer.weight) != len(mask):
            continue  # nothing goes, or it went with a layer that it is added to
        graph = torch_pruning.DependencyGraph().build_dependency(
            small, example, customized_pruners={Shortcut: _ShortcutPruner()}
        )
        out = (~mask).nonzero().flatten().tolist()
        graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=out).prune()
    return small


def count_macs(network: nn.Module, example: Tensor, *, convolutions: bool = False) -> int:
    """Count multiply-accumulates as `ftwt.evaluate` does of a plain network.

    Args:
        network: In eval mode.
        example: One input, (1, C, H, W).
        convolutions: Count these alone.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)
    found = counter.get_flop_counts().get("Global", {})
    kinds = [torch.ops.aten.convolution] if convolutions else list(found)
    return sum(found.get(kind, 0) for kind in kinds) // 2


def classifier(network: nn.Module) -> str:
    """Name the layer whose outputs are the network's: the last linear one, or convolution.

    Raises:
        ValueError: There is no convolution.
    """
    layers = {name: m for name, m in network.named_modules() if isinstance(m, _LAYERS)}
    if not any(isinstance(m, nn.Conv2d) for m in layers.values()):
        raise ValueError(f"{type(network).__name__} has no convolution to prune")
    linear = [name for name, m in layers.items() if isinstance(m, nn.Linear)]
    return (linear or list(layers))[-1]


def _gather_gradients(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    network.zero_grad()
    for images, labels in batches:
        for part, right in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            F.cross_entropy(network(part), right).backward()


def _with_open_shortcuts(network: nn.Module, example: Tensor) -> nn.Module:
    """Put a `Shortcut` in the place of each `Subsample`; the outputs stay what they are."""
    channels: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: channels.update({name: given[0].shape[1]})
        )
        for name, module in network.named_modules()
        if isinstance(module, Subsample)
    ]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    for name, inputs in channels.items():
        old = network.get_submodule(name)
        shortcut = Shortcut(inputs, old.channels, old.stride).to(example.device)
        network.set_submodule(name, shortcut)
    return network
