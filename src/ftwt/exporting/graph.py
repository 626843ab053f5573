"""A network as a graph of PyTorch's operators, by `torch.export`: what every format begins with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

INPUT, OUTPUT, MASK = "input", "output", "mask"  # how the names of tensors begin
BATCH = "batch"  # name of their first dimension, where it may have any size

Inputs = tuple[Tensor, ...]


class Graph(nn.Module):
    """What a file computes: a network's output and, if asked for, the mask of each unit."""

    def __init__(self, network: nn.Module, *, masks: bool) -> None:
        super().__init__()
        self.network, self.masks = network, masks
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return the network's output; with masks, that and a dict unit -> (B, C) bool."""
        if not self.masks:
            return self.network(*inputs)
        output, gates = self.network(*inputs, return_gates="masks")
        return output, {unit: gate.mask for unit, gate in gates.items()}

    def named(self, result: Any) -> dict[str, Tensor]:
        """Return what `forward` returned, in its order, by the names that a file gives it."""
        output, masks = result if self.masks else (result, {})
        return dict([*named(output, OUTPUT), *named(masks, MASK)])


def named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what a network takes or gives, tensor by tensor, each with a name of its own.

    A tensor has the name itself; those in a dict or a sequence have `name.key` or `name.0`.

    Raises:
        ValueError: There is something else than tensors in it.
    """
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named(item, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from named(item, f"{name}.{number}")
    else:
        kind = type(value).__name__
        raise ValueError(f"{name} is a {kind}; a file has tensors, and dicts and lists of them")


def named_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """Return inputs by the names that a file gives them."""
    return dict(named(inputs if len(inputs) > 1 else inputs[0], INPUT))


def sizes(inputs: Inputs, batch: Any) -> dict[str, Any]:
    """Say, as the exporters want it, that the first dimension of all inputs is `batch`."""
    return {"inputs": tuple({0: batch} for _ in inputs)}


def trace_program(graph: Graph, inputs: Inputs, *, any_size: bool) -> torch.export.ExportedProgram:
    """Trace a network for export.

    Args:
        graph: The network.
        inputs: Example, each (B, ...).
        any_size: Let it take any number of images, not the example's alone.

    Raises:
        ValueError: It cannot be exported, or fixes how many images it takes.
    """
    shapes = None
    if any_size:
        if len(inputs[0]) == 1:  # which would be taken for a network that takes no other
            inputs = tuple(torch.cat([x, x]) for x in inputs)
        shapes = sizes(inputs, torch.export.Dim(BATCH, min=1))
    try:
        program = torch.export.export(graph, inputs, dynamic_shapes=shapes)
    except Exception as error:  # it runs the user's forward: anything may come out of it
        why = f"cannot export {type(graph.network).__name__}: {first_line(error)}"
        if "specialized it to be a constant" in str(error):
            why += " Its forward fixes how many images it takes; export for one number, batch_size="
        raise ValueError(why) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names places on this machine
    return program


def first_line(error: Exception) -> str:
    """Return what an error says, in a line."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {told[0] if told else 'for no stated reason'}"
