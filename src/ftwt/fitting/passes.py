"""A network run over all images as far as some node, and later on from there."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, fx

from ..graph.inputs import images_of
from ..processes import first, sharing_memory, summed
from ..pruning.dynamic import ARGUMENTS, DynamicModel
from .sites import Site

LEAST = 2**30  # bytes of feature maps that may be kept in the memory of any machine
SHARE = 4  # of the free memory, one part in so many may be kept
CONTAINERS = (  # of a container's memory: its limit, and what it uses
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def room(device: torch.device, sharing: int) -> int:
    """Bytes of feature maps that may be kept: a quarter of the free memory where they lie.

    Args:
        device: Where they lie. The memory of a GPU is one process's own.
        sharing: Processes that share what may be kept in the machine's memory, at least 1 GiB.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // SHARE
    free = psutil.virtual_memory().available
    for limit, used in CONTAINERS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no container of this kind, or one without a limit
            continue
    return max(LEAST, free // SHARE) // sharing


class Run(fx.Interpreter):
    """One batch on its way through a network.

    Args:
        network: The graph of a `DynamicModel`.
        images: (B, C, *spatial).
        apply: The masks to apply, as in `Gate`.
    """

    def __init__(self, network: fx.GraphModule, images: Tensor, apply: str) -> None:
        super().__init__(network)
        self.nodes = list(network.graph.nodes)
        image = next(node for node in self.nodes if node.op == "placeholder")
        self.given = {image.target: images, ARGUMENTS[0]: apply, ARGUMENTS[1]: False}
        self.at = 0  # the place in the graph of the first node that has not run
        self.copies: dict[str, Any] = {}  # node -> its value as it was when it was made

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the network is called with; an optional argument has its default."""
        if target in self.given:
            return self.given[target]
        if args:
            return args[0]
        raise ValueError(f"the network needs a second input, {target}; only one can be given here")

    def advance(self, end: int, keep: Container[str] = (), copy: Container[str] = ()) -> None:
        """Run all nodes before a place in the graph, and forget values that nobody needs any more.

        Args:
            end: The place of the first node that is not run.
            keep: Nodes whose values are wanted later, though no node that is left reads them.
            copy: Nodes of which `copies` is to hold the values as they were made: what follows may
                change them in place, as a ReLU does after an addition.
        """
        while self.at < end:
            node = self.nodes[self.at]
            value = self.env[node] = self.run_node(node)
            if node.name in copy:
                self.copies[node.name] = value.clone() if isinstance(value, Tensor) else value
            for done in (node, *self.user_to_last_uses.get(node, ())):
                if done.name not in keep and (done is not node or not node.users):
                    self.env.pop(done, None)
            self.at += 1
        read = {used for node in self.nodes[self.at :] for used in node.all_input_nodes}
        for node in [n for n in self.env if n not in read and n.name not in keep]:
            del self.env[node]
        for name in [name for name in self.copies if name not in copy]:
            del self.copies[name]

    def fork(self) -> Run:
        """A copy that can run on while this one stays where it is."""
        other = object.__new__(Run)
        other.__dict__.update(self.__dict__)
        other.env = {
            node: value.clone() if isinstance(value, Tensor) else value
            for node, value in self.env.items()
        }
        return other

    def bytes(self) -> int:
        """Size of the values that are kept."""
        values = (*self.env.values(), *self.copies.values())
        tensors = [value for value in values if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def repeatable(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches that can be gone through several times: a list of those that a generator yields.

    Raises:
        ValueError: They are one tensor, which would be gone through image by image.
    """
    if isinstance(batches, Tensor):
        raise ValueError(
            f"batches is one tensor of shape {tuple(batches.shape)}; give a list of batches: "
            "[images] is one batch, images.split(64) several"
        )
    return list(batches) if isinstance(batches, Iterator) else batches


def check_steady(batches: Iterable[Any]) -> None:
    """Make sure that the same images come first whenever batches are gone through.

    Raises:
        ValueError: Others do: they are shuffled, or changed by chance.
    """
    before, after = (next((images_of(batch) for batch in batches), None) for _ in range(2))
    if before is None or after is None:
        return
    same = before.shape == after.shape and torch.equal(before.nan_to_num(), after.nan_to_num())
    if not same:
        raise ValueError(
            "the batches hold other images each time they are gone through, so they are shuffled, "
            "or augmented by chance; give the same ones in the same order (shuffle=False)"
        )


def shown(
    dynamic: DynamicModel, batches: Iterable[Any], images: int, *, accelerator: Any = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield images that a network can take, where it lies: (place of the first one, images).

    Args:
        dynamic: The network.
        batches: Images (B, C, *spatial), with or without labels.
        images: How many, at most, over all processes together.
        accelerator: As for `repair`.

    Raises:
        ValueError: They are not of its shape, or not finite.
    """
    device = next(dynamic.parameters()).device
    for place, part in first(batches, images, accelerator=accelerator):
        if len(part):
            dynamic.check_input(part)
            yield place, part.to(device)


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite: a finite sum says so in one pass."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def refuse_infinite(what: str, *values: Tensor) -> None:
    """Refuse values that are not finite.

    Args:
        what: They are, in words, with the verb.
        values: Any shapes.
    """
    if not all(map(finite, values)):
        raise ValueError(
            f"{what} not finite; look for NaN or infinity in the images and the weights"
        )


@dataclass(frozen=True)
class Reading:
    """Of one batch, what a layer reads and should give.

    Args:
        place: Of its first image.
        count: Of its images.
        found: Node that the site needs -> value.
        inputs: What the layer reads.
        own: What it should give: the target less the other term of a sum.
        target: The teacher's value.
    """

    place: int
    count: int
    found: dict[str, Any]
    inputs: Tensor
    own: Tensor
    target: Tensor


@dataclass(frozen=True)
class Batch:
    """A batch on its way: the place of its first image, how many it has, and its two runs."""

    place: int
    count: int
    run: Run
    taught: Run

    def bytes(self) -> int:
        """Size of the values that are kept."""
        return self.run.bytes() + (0 if self.taught is self.run else self.taught.bytes())


class Passes:
    """All batches on their way through two networks: the one that is repaired, and its teacher.

    Between passes, the feature maps of as many batches are kept as there is room for; the others
    start anew.

    Args:
        network: The graph that is repaired.
        teacher: The same graph with the dense network's weights; or `network` itself, if nothing is
            repaired: then each batch runs once.
        batches: Called for each pass where some start anew: (place of the first image, images).
        sites: The layers of each call of `values`, in order.
        accelerator: As for `repair`.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        teacher: fx.GraphModule,
        batches: Callable[[], Iterable[tuple[int, Tensor]]],
        sites: Iterable[Site],
        *,
        accelerator: Any = None,
    ) -> None:
        self.network, self.teacher, self.batches = network, teacher, batches
        self.accelerator, sites = accelerator, list(sites)
        self.needs, self.goals = [set(site.needs) for site in sites], [site.goal for site in sites]
        device = next(network.parameters()).device
        self.room, self.done = room(device, sharing_memory(accelerator)), 0
        self.places = {node.name: i for i, node in enumerate(network.graph.nodes)}
        self.kept: dict[int, Batch] = {}
        self.whole = False  # whether all batches of all processes are kept

    def values(self, site: Site) -> Iterator[Reading]:
        """Yield, batch by batch, what a layer reads and should give; it is about to be fitted.

        Raises:
            ValueError: That is not finite.
        """
        needs, goals = set().union(*self.needs[self.done :]), set(self.goals[self.done :])
        self.done += 1
        kept: dict[int, Batch] = {}
        size, count = 0, 0
        for batch in self._under_way():
            found, target = self._advance(batch, site, needs, goals)
            inputs = found[site.needs[0]]
            own = target if site.other is None else target - found[site.other.name]
            refuse_infinite(f"{site.name} reads or should give values that are", inputs, own)
            yield Reading(batch.place, batch.count, found, inputs, own, target)
            count += 1
            more = batch.bytes()
            if size + more <= self.room:
                kept[batch.place] = batch
                size += more
        left = summed([torch.tensor(count - len(kept))], accelerator=self.accelerator)
        self.kept, self.whole = kept, not left[0]  # all processes go through the batches, or none

    def _advance(
        self, batch: Batch, site: Site, needs: set[str], goals: set[str]
    ) -> tuple[dict[str, Any], Tensor]:
        """Run a batch as far as a site: the values that it needs, and its goal."""
        run, taught = batch.run, batch.taught
        further = max(self.places[name] for name in site.needs) + 1
        goal = self.places[site.goal] + 1
        if run is taught:
            run.advance(max(further, goal), copy=needs | goals)
            return {name: run.copies[name] for name in site.needs}, run.copies[site.goal]
        run.advance(self.places[site.layer.name], needs)
        ahead = run if further <= run.at else run.fork()
        ahead.advance(further, needs)
        found = {node.name: value for node, value in ahead.env.items() if node.name in site.needs}
        inputs = site.layer.all_input_nodes[0]
        found[inputs.name] = run.env[inputs]  # what runs ahead may have changed its copy in place
        taught.advance(goal, copy=goals)
        return found, taught.copies[site.goal]

    def _under_way(self) -> Iterator[Batch]:
        """Each batch as far as it has come, or from the start."""
        kept, self.kept = self.kept, {}
        if self.whole:
            while kept:
                yield kept.pop(next(iter(kept)))
            return
        for place, images in self.batches():
            if place in kept:
                yield kept.pop(place)
                continue
            taught = Run(self.teacher, images, "open")
            same = self.network is self.teacher
            run = taught if same else Run(self.network, images, "predicted")
            yield Batch(place, len(images), run, taught)
