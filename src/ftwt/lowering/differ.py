"""The first operation by which an engine differs from its network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..graph.recognise import operation
from ..pruning.dynamic import ARGUMENTS, FrozenGate
from ..runtime import Engine, Predict, Program
from ..runtime.reference import Map, Network
from .fuse import tidy, written
from .lower import Walk, walk
from .moves import Value

NEAR = 1e-4  # of a map's largest value: less is rounding
ROUNDING = 100  # times as much as PyTorch's own rounding is rounding, too

Masks = dict[str, Tensor]  # unit -> (B, C) bool


def in_float32(model: nn.Module) -> nn.Module:
    """Return the network if it computes in float32 on the CPU, otherwise a copy that does."""
    tensors = [*model.parameters(), *model.buffers()]
    as_it_is = all(t.device.type == "cpu" for t in tensors) and all(
        t.dtype == torch.float32 for t in tensors if t.is_floating_point()
    )
    return model if as_it_is else copy.deepcopy(model).cpu().float()


class Closer:
    """A closer look at a network and its engine, where their results are not plainly the same.

    Args:
        engine: That runs the network's program.
        network: In eval mode, float32, on the CPU.
        example: Input of a plain network.
        image: (B, C, H, W) that both were run on.
        masks: Unit -> masks that are applied in both.
    """

    def __init__(
        self, engine: Engine, network: nn.Module, example: Any, image: Tensor, masks: Masks
    ) -> None:
        self.engine, self.network, self.example = engine, network, example
        self.image, self.masks = image, masks

    def look(self, unit: str | None = None, differ: Tensor | None = None) -> None:
        """Compare operation by operation; return if all that differs is rounding.

        Args:
            unit: The gate that decides otherwise, if one does.
            differ: (B, C) of its filters that it decides otherwise.

        Raises:
            ValueError: If more than rounding differs.
        """
        walked, program = walk(self.network, self.example)
        number = _numbers(program)
        program = tidy(program)
        ours = Network(program).maps(self.image.numpy(), self._held(program))
        rough, exact = self._in_torch(walked, torch.float32), self._in_torch(walked, torch.float64)
        self._refuse_chance(walked, rough, self._in_torch(walked, torch.float32))
        for node, value in walked.made.items():
            if isinstance(value, Value) and node in rough:
                found = ours[number[value.map]].value.reshape(rough[node].shape)
                if share := _beyond(torch.from_numpy(found), rough[node], exact.get(node)):
                    self._refuse(walked, node, share)
        output = next(node for node in reversed(walked.network.graph.nodes) if node.op == "output")
        source = output.all_input_nodes[0]
        if unit is not None and differ is not None:
            self._compare_gate(program, ours, unit, differ)
        elif source in rough:
            found = self.engine.run(self.image, self.masks)[0].reshape(rough[source].shape)
            if share := _beyond(found, rough[source], exact.get(source)):
                self._refuse_engine(share)

    def _in_torch(self, walked: Walk, dtype: torch.dtype) -> dict[fx.Node, Tensor]:
        """Node -> what PyTorch makes there, under the masks; nothing if it cannot."""
        try:
            network = copy.deepcopy(walked.network).to(dtype)
        except Exception:  # a module of the user's own may not be copied
            if dtype != torch.float32 or self.masks:
                return {}
            network = walked.network
        for node in network.graph.nodes:
            if (unit := node.meta.get("gate")) in self.masks:
                parent, _, leaf = str(node.target).rpartition(".")
                setattr(network.get_submodule(parent), leaf, FrozenGate(self.masks[unit]))
        recorder = _Recorder(network)
        try:
            recorder.run(*_inputs(network, self.image.to(dtype)))
        except Exception:
            if dtype == torch.float32:
                raise
            return {}  # its forward may insist on float32
        names = {node.name: node for node in walked.network.graph.nodes}
        return {names[name]: value for name, value in recorder.seen.items()}

    def _held(self, program: Program) -> dict[int, np.ndarray]:
        place = {gate.unit: index for index, gate in enumerate(program.gates)}
        return {place[unit]: mask.numpy().astype(np.uint8) for unit, mask in self.masks.items()}

    def _compare_gate(
        self, program: Program, maps: dict[int, Map], unit: str, differ: Tensor
    ) -> None:
        """Refuse a gate that decides otherwise about logits that rounding does not reach."""
        gates = [gate.unit for gate in program.gates]
        (op,) = (
            op for op in program.operations if isinstance(op, Predict) and gates[op.mask] == unit
        )
        features = np.concatenate([maps[x].value[:, :, 0, 0] for x in op.features], 1)
        spread = NEAR * np.abs(features).max(1, keepdims=True) * np.ones_like(features)
        if op.softmax:
            features = np.exp(features - features.max(1, keepdims=True))
            features /= features.sum(1, keepdims=True)
            spread *= 2 * features
        weight, bias = program.constants[op.weight], program.constants[op.bias]
        if op.reduce is not None:
            weight = weight @ program.constants[op.reduce]
        logits = features @ weight.T + bias
        reach = spread @ np.abs(weight).T + NEAR * np.abs(bias)
        level = np.minimum(op.threshold, logits.max(1, keepdims=True))
        wrong = differ.numpy() & (np.abs(logits - level) > 2 * reach)
        if wrong.any():
            filters = ", ".join(map(str, np.flatnonzero(wrong.any(0))[:5]))
            raise ValueError(
                f"the gate of unit {unit!r} decides otherwise in the engine than in PyTorch, for "
                f"filters {filters}, beyond rounding; please report this network"
            )

    def _refuse(self, walked: Walk, node: fx.Node, share: float) -> NoReturn:
        name = operation(node, walked.network)
        why = ""
        if node.op == "call_module":
            module = walked.network.get_submodule(str(node.target))
            if module._forward_hooks or module._forward_pre_hooks:
                why = (
                    f" {node.target} has forward hooks, which an engine does not run: remove them."
                )
        raise ValueError(
            "the engine does not compute what the network does: they first differ at "
            f"{name} (node {node.name}), by {share:.2g} of its largest value.{why} Write that "
            "operation as torch's own modules and functions, or report it"
        )

    def _refuse_chance(
        self, walked: Walk, first: dict[fx.Node, Tensor], second: dict[fx.Node, Tensor]
    ) -> None:
        """Refuse a network that says something else each time: nothing could be told from it."""
        for node, value in first.items():
            if node in second and (share := _beyond(second[node], value, None)):
                raise ValueError(
                    f"the network gives something else each time that it runs, first at "
                    f"{operation(node, walked.network)} (node {node.name}), by {share:.2g} of its "
                    "largest value: an engine has no random numbers and keeps nothing from one "
                    "image to the next"
                )

    def _refuse_engine(self, share: float) -> NoReturn:
        """Each operation alone is right: find where this engine runs them otherwise."""
        place = "none of its operations alone"
        for name, prefix in _prefixes(self.engine.program):
            gates = {gate.unit for gate in prefix.gates}
            masks = {unit: mask for unit, mask in self.masks.items() if unit in gates}
            fast, slow = (
                Engine(prefix, engine=kind).run(self.image, masks)[0]
                for kind in (self.engine.kind, "reference")
            )
            if _beyond(fast, slow, None):
                place = name
                break
        raise ValueError(
            "the engine does not compute what the network does: its output is off by "
            f"{share:.2g} of its largest value, and its kernels first differ from the reference at "
            f"{place}. Please report this network"
        )


def _inputs(network: fx.GraphModule, image: Tensor) -> list[Any]:
    """What a traced network takes, its own defaults where it has some."""
    given = {ARGUMENTS[0]: "predicted"}
    nodes = [node for node in network.graph.nodes if node.op == "placeholder"]
    return [image, *(given.get(str(node.target), *node.args) for node in nodes[1:])]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what each node made, as it was then."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point():
            self.seen[n.name] = result.detach().clone()
        elif isinstance(result, tuple) and n.meta.get("gate") is not None:
            self.seen[n.name] = result[0].detach().clone()
        return result


def _numbers(program: Program) -> dict[int, int]:
    """The numbers that `tidy` gives to maps."""
    order = [0, *(out for op in program.operations if (out := written(op)) is not None)]
    return {old: new for new, old in enumerate(order)}


def _beyond(found: Tensor, rough: Tensor, exact: Tensor | None) -> float:
    """By which share of the largest value a map is off beyond rounding; 0: it is not."""
    truth = rough.double() if exact is None else exact.double()
    finite = truth.isfinite() & rough.isfinite()
    if not finite.any():
        return 0.0
    largest = float(truth[finite].abs().max())
    error = float((found.double() - truth)[finite].abs().nan_to_num(torch.inf).max())
    own = float((rough.double() - truth)[finite].abs().max())
    allowed = (10 * NEAR if exact is None else NEAR) * largest + ROUNDING * own
    return 0.0 if error <= allowed else error / max(largest, 1e-30)


def _prefixes(program: Program) -> Iterator[tuple[str, Program]]:
    """A program cut off after each of its operations that write a map."""
    for end, op in enumerate(program.operations):
        if (out := written(op)) is None:
            continue
        operations = program.operations[: end + 1]
        decided = {op.mask for op in operations if written(op) is None}  # type: ignore[attr-defined]
        if decided != set(range(len(decided))):
            continue
        yield (
            op.name,
            tidy(
                replace(
                    program,
                    operations=operations,
                    output=out,
                    gates=program.gates[: len(decided)],
                    classes=(),
                )
            ),
        )
