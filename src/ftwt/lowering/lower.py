"""Walk a traced network once and write down what it does."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..graph.activity import ChannelGraph
from ..graph.convolutions import convolves_otherwise, inside, is_linear
from ..graph.inputs import inputs_of
from ..graph.operations import MOVING_MODULES, MOVING_NAMES
from ..graph.recognise import frozen_affine, is_known, operation, passes_through, recognised
from ..graph.settle import changed
from ..graph.trace import Ran, trace
from ..pruning.dynamic import ARGUMENTS, DynamicModel, FrozenGate
from ..pruning.method import Gate
from ..pruning.own import OwnPredictor
from ..runtime.program import Activate, Affine, Fixed, Predict, Program, Silence
from ..runtime.program import Gate as Mask
from .draft import Data, Draft
from .fuse import fuse
from .moves import SAMPLES, Moved, Value, with_part, without_border
from .operations import CHANGE_THEIR_INPUT, HANDLERS, IDENTITIES, MODULES, Kind, double
from .shared import SharedMemory

_UNHEARD_OF = (TypeError, IndexError, RuntimeError, AttributeError, KeyError)  # by a handler


def lower(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    classes: Sequence[str] = (),
    ran: Ran | None = None,
) -> Program:
    """Turn a network into a program.

    Batch norms are folded into the convolutions before them, and activations, residual adds and
    masks become part of these. Weights are rounded once, to float32.

    Args:
        model: A dynamic network, or any network that `torch.fx` can trace. It is read in eval mode
            and never changed; the program shares no memory with it.
        example: Input (B, C, H, W) of a plain network. A dynamic one knows its size.
        classes: Names of the outputs.
        ran: Is given what a plain network was run on, and what it gave.

    Returns:
        The program. Its executed MACs are those that `DynamicModel.macs` counts for the same masks.

    Raises:
        ValueError: If an operation cannot be lowered, with its name and its node, or if the
            network does not map one image to one tensor.
    """
    walked, program = walk(model, example, ran)
    if classes and len(classes) != (found := program.maps[program.output][0]):
        raise ValueError(f"{len(classes)} classes for {found} outputs; name each, or none")
    return fuse(replace(program, classes=tuple(classes)))


def walk(
    model: nn.Module, example: Tensor | tuple[Any, ...] | None = None, ran: Ran | None = None
) -> tuple[Walk, Program]:
    """Write down what each node does, one operation after the other: what `lower` fuses.

    Args:
        model: As of `lower`, and so is the example.
        example: Input (B, C, H, W) of a plain network.
        ran: As of `lower`.

    Returns:
        The walk, which knows what became of each node, and the program.

    Raises:
        ValueError: As `lower`.
    """
    if isinstance(model, DynamicModel):
        network, channels = model.network, model.channels
        image: tuple[int, ...] = model.input_shape
    else:
        if example is None:
            raise ValueError("example=None: a plain network needs an input, (B, C, H, W)")
        inputs = inputs_of(example)
        network, image = trace(model, inputs, ran=ran), tuple(inputs[0].shape[1:])
        channels = ChannelGraph(network, inputs)
    if len(image) != 3:
        raise ValueError(
            f"inputs of shape {image} for one sample; only images (C, H, W) can be lowered: sound, "
            "video and vectors run in PyTorch, as the network they are"
        )
    with torch.no_grad():
        walked = Walk(network, channels, cast(tuple[int, int, int], image))
        output = walked.run()
    dense = sum(layer.macs for layer in channels.layers)
    return walked, walked.draft.finish(output, dense, ())


class Walk:
    """What each node's value is, as far as the walk has come.

    Attributes:
        network: The traced network.
        made: Node -> what it became when it was called: a map, or elements of maps.
    """

    def __init__(
        self, network: fx.GraphModule, channels: ChannelGraph, image: tuple[int, int, int]
    ) -> None:
        self.network, self.shapes = network, channels.shapes
        self.draft = Draft(image)
        self.values: dict[fx.Node, Any] = {}
        self.made: dict[fx.Node, Data] = {}
        self.memory = SharedMemory(network)
        self.masks: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def run(self) -> int:
        """Lower all nodes; return the map that is the network's output."""
        for node in self.network.graph.nodes:
            self.draft.label = f"{operation(node, self.network)} (node {node.name})"
            self.draft.shape = tuple(self.shapes.get(node.name, ()))
            if node.op == "placeholder":
                self.values[node] = self._input(node)
            elif node.op == "output":
                return self._output(node.args[0])
            else:
                try:
                    self.values[node] = self._value(node)
                except _UNHEARD_OF as error:
                    self.draft.refuse(str(error).splitlines()[0])
                if isinstance(made := self.values[node], Data):
                    self.made[node] = made
        raise AssertionError("a graph ends with its output")

    def _input(self, node: fx.Node) -> Any:
        if node.args:  # its default
            return node.args[0]
        if self.values:
            raise ValueError(f"the network has a second input, {node.target}; give it a default")
        return self.draft.value(0)

    def _output(self, result: Any) -> int:
        dynamic = any(node.target in ARGUMENTS for node in self.network.graph.nodes)
        found = self._given(result[0] if dynamic else result)
        if not isinstance(found, Data):
            kind = type(found).__name__.removeprefix("immutable_")  # as torch.fx keeps dicts
            raise ValueError(
                f"the network returns a {kind}; an engine needs one tensor: wrap the network in "
                "a module that returns it, and convert that"
            )
        self.draft.label = self.draft.name = "output"
        return self.draft.whole(found)

    def _given(self, argument: Any) -> Any:
        return fx.node.map_aggregate(
            argument, lambda part: self.values[part] if isinstance(part, fx.Node) else part
        )

    def _value(self, node: fx.Node) -> Any:
        self.draft.name = self._name(node)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.network)
        if (unit := node.meta.get("gate")) is not None:
            return self._gate(node, unit)
        if (unit := node.meta.get("inherits")) is not None:
            return self._silence(self.values[node.all_input_nodes[0]], self.masks[unit])
        if "info" in node.meta:
            return None
        args, kwargs = self._given(node.args), self._given(node.kwargs)
        if node.op == "call_module":
            return self._module(node, self.network.get_submodule(str(node.target)), *args, **kwargs)
        name = recognised(node, self.network)
        if not any(isinstance(part, Data) for part in _leaves((args, kwargs))):
            return self._call(node, name, args, kwargs)  # sizes, or weights
        if node.target is changed:  # in place, by another node: that has been seen to
            return args[0]
        if name == "getitem" and isinstance(args[0], tuple):
            return args[0][args[1]]
        if name in MOVING_NAMES:
            return self._move(node, name, args, kwargs)
        if name not in HANDLERS:
            self.draft.refuse()
        result = HANDLERS[name](self.draft, *args, **kwargs)
        if name in CHANGE_THEIR_INPUT or kwargs.get("inplace"):
            self._changed(node, result)
        return result

    def _name(self, node: fx.Node) -> str:
        """Name a module's call as the layers of the channel graph are named."""
        if node.op != "call_module":
            return node.name
        name = str(node.target)
        self.calls[name] = self.calls.get(name, 0) + 1
        return name if self.calls[name] == 1 else f"{name} (call {self.calls[name]})"

    def _module(self, node: fx.Node | None, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kind = type(module)
        if not any(isinstance(part, Data) for part in _leaves(args)):
            self.draft.refuse("its input is the same for all images")
        if (kind.__name__ in IDENTITIES or not is_known(kind)) and passes_through(module):
            return args[0]
        if isinstance(module, MOVING_MODULES):
            return self._moved(module, args, kwargs)
        if isinstance(module, nn.BatchNorm2d) and isinstance(
            getattr(module, "act", None), nn.Module
        ):
            return self._norm_with_activation(module, args[0])
        for base in kind.__mro__:
            if base in MODULES and kind.forward is base.forward and not convolves_otherwise(module):
                name, fields = MODULES[base]
                given = {field: getattr(module, field) for field in fields}
                result = HANDLERS[name](self.draft, args[0], **given)
                if getattr(module, "inplace", False) and node is not None:
                    self._changed(node, result)
                return result
        if (affine := frozen_affine(module)) is not None:
            scale, shift = affine
            zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
            return HANDLERS["batch_norm"](self.draft, args[0], zeros, ones, scale, shift, eps=0.0)
        if isinstance(module, nn.Conv2d):
            return self._own_convolution(module, args[0])
        if is_linear(module):
            return HANDLERS["linear"](self.draft, args[0], module.weight, module.bias)
        self.draft.refuse("there is no rule for " + ("it" if node else f"its {kind.__name__}"))

    def _own_convolution(self, module: nn.Conv2d, x: Data) -> Any:
        """Lower a convolution with a forward of its own: what it pads, and the weight it makes."""
        if (found := inside(module, tuple(x.shape[1:]))) is None:
            self.draft.refuse("its forward is not that of one convolution")
        values: dict[fx.Node, Any] = {}
        for node in found.graph.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                values[node] = x
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(found)
            elif node.op == "output":
                return args[0]
            elif not any(isinstance(part, Data) for part in args):
                values[node] = self._call(node, str(node.target), args, kwargs)
            elif (name := operation(node, found)) == "pad":
                values[node] = self._moved(node.target, args, kwargs)
            else:
                values[node] = HANDLERS[name](self.draft, *args, **kwargs)
        raise AssertionError("a graph ends with its output")

    def _norm_with_activation(self, module: Any, x: Data) -> Data:
        """Lower timm's batch norm, which holds the activation that follows it."""
        if not isinstance(getattr(module, "drop", None), nn.Identity):
            self.draft.refuse(f"it drops by {module.drop}")
        name, fields = MODULES[nn.BatchNorm2d]
        given = {field: getattr(module, field) for field in fields}
        normed = HANDLERS[name](self.draft, x, **given)
        return self._module(None, module.act, normed)  # in place, it changes what the norm made

    def _changed(self, node: fx.Node, result: Data) -> None:
        """An operation in place: who reads its input from now on, reads the result."""
        source = node.args[0]
        if isinstance(source, fx.Node) and isinstance(result, Data):
            for other in self.memory.sharing(source, after=node):
                was = self.values[other]
                parts = was if isinstance(was, tuple) else (was,)
                changed = [
                    with_part(part, self.values[source], result) if isinstance(part, Data) else part
                    for part in parts
                ]
                if any(part is None for part in changed):
                    self.draft.refuse(f"it changes in place what node {other.name} reads otherwise")
                self.values[other] = tuple(changed) if isinstance(was, tuple) else changed[0]
            self.values[source] = result

    def _call(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        if node.op == "call_method":
            return getattr(args[0], name)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _move(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        if node.op == "call_method":
            method = operator.methodcaller(name, *args[1:], **kwargs)
            return self._moved(method, args[:1], {})
        return self._moved(node.target, args, kwargs)

    def _moved(self, movement: Any, args: Any, kwargs: Any) -> Any:
        """Run a movement on element numbers."""
        numbers = fx.node.map_aggregate(
            (args, kwargs), lambda part: part.numbers if isinstance(part, Data) else part
        )
        result = movement(*numbers[0], **numbers[1])
        parts = result if isinstance(result, tuple | list) else (result,)
        if any(part.dim() < 2 or len(part) != SAMPLES for part in parts):
            self.draft.refuse("it moves data between samples")
        moved = tuple(Moved(part.contiguous()) for part in parts)  # as `view` may need it
        return moved if isinstance(result, tuple | list) else moved[0]

    def _gate(self, node: fx.Node, unit: str) -> tuple[Data, None]:
        """Write down how a gate decides, and that its decision applies."""
        inputs, outputs = self._given(node.args[:2])
        gate = cast(Gate | FrozenGate, self.network.get_submodule(str(node.target)))
        self.draft.name = unit
        self.draft.shape = tuple(outputs.shape)
        mask = self.masks[unit] = len(self.draft.gates)
        self.draft.gates.append(Mask(unit=unit, channels=outputs.shape[0], prior=outputs.shape[0]))
        if isinstance(gate, FrozenGate):
            value = self.draft.constant("value", gate.mask.to(torch.uint8))
            self.draft.add(Fixed(name=unit, mask=mask, value=value))
        else:
            self._predict(gate, inputs, mask)
        return self._silence(outputs, mask), None

    def _predict(self, gate: Gate, inputs: Data, mask: int) -> None:
        predictor, draft = gate.predictor, self.draft
        if isinstance(predictor, OwnPredictor):
            raise ValueError(
                f"the engine does not know the head {predictor.head} of unit {draft.name!r}; "
                "convert with head='standardized', or export the network (ftwt.export)"
            )
        inner, share = inputs, 1.0
        if isinstance(inputs, Moved) and len(inputs.shape) == 3:
            inner, _ = without_border(inputs)
            share = math.prod(inner.shape) / math.prod(inputs.shape)
        x = draft.whole(inner)
        kinds: tuple[Kind, ...] = ("max", "mean")
        if predictor.pool != "both":
            kinds = (predictor.pool,)
        folds = predictor.standardize is not None
        features = tuple(self._pooled(x, kind, share, folds=folds) for kind in kinds)
        bias = double(predictor.linear.bias)
        weight = double(predictor.linear.weight)
        reduce = None if predictor.reduce is None else double(predictor.reduce.weight)
        if reduce is not None and reduce.size + weight.size >= len(weight) * reduce.shape[1]:
            weight, reduce = weight @ reduce, None  # the bottleneck is none
        if predictor.standardize is not None:
            norm = predictor.standardize
            scale = 1 / np.sqrt(double(norm.running_var) + norm.eps)
            first = (weight if reduce is None else reduce) * scale
            shift = first @ double(norm.running_mean)
            bias = bias - (shift if reduce is None else weight @ shift)
            of_each = [share if kind == "mean" else 1.0 for kind in kinds]
            first = first * np.repeat(of_each, draft.maps[x][0])
            weight, reduce = (first, None) if reduce is None else (weight, first)
        draft.add(
            Predict(
                name=draft.name,
                features=features,
                mask=mask,
                weight=draft.constant("predict", weight),
                bias=draft.constant("predict_bias", bias),
                threshold=float(gate.threshold),
                softmax=predictor.standardize is None,
                reduce=None if reduce is None else draft.constant("predict_reduce", reduce),
            )
        )

    def _pooled(self, x: int, kind: Kind, share: float, *, folds: bool) -> int:
        """Pool a map that is so large a share of one with zeros around it, as if it were that one.

        The largest value is then at least 0. A mean becomes smaller, unless that `folds` into what
        multiplies it.
        """
        draft, found = self.draft, self.draft.pooled(x, kind)
        if share == 1 or (kind == "mean" and folds):
            return found
        count = draft.maps[found][0]
        out, name = draft.map((count, 1, 1)), f"{draft.name}.padded"
        if kind == "max":
            draft.add(Activate(name=name, x=found, out=out, act="relu"))
            return out
        scale = draft.constant("share", np.full(count, share))
        shift = draft.constant("shift", np.zeros(count))
        draft.add(Affine(name=name, x=found, out=out, scale=scale, shift=shift))
        return out

    def _silence(self, x: Data, mask: int) -> Data:
        out = self.draft.map(x.shape)
        self.draft.add(Silence(name=self.draft.name, x=self.draft.whole(x), out=out, mask=mask))
        return Value(out, tuple(x.shape))


def _leaves(value: Any) -> list[Any]:
    """All parts of nested tuples, lists and dicts."""
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return found
