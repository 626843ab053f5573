"""A network whose units are gated: what `convert` returns."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import _register_namedtuple

from ..graph.activity import ChannelGraph
from ..graph.inputs import images_of, refuse_spoilt, refuse_unreadable
from ..graph.trace import cannot_take, evaluating
from ..graph.units import Unit
from ..names import nearest
from .macs import MaskedMacs, masked_macs
from .method import Apply, Explain, Gate, GateOutput, MaskPredictor, silence
from .summary import Summary

GATES = "ftwt_gates"  # where the gates live inside the traced network
ARGUMENTS = ("ftwt_apply", "ftwt_explain")  # what its forward takes beside its inputs

Batches = Iterable[tuple[Tensor, Any] | Tensor]

# Without a name of its own, what gates decide could be exported by torch.export, but not saved.
_register_namedtuple(GateOutput, serialized_type_name="ftwt.method.GateOutput")


class FrozenGate(nn.Module):
    """Compute the same filters for every sample: the gate of a static twin.

    Args:
        mask: (C,) bool.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def forward(
        self, inputs: Tensor, outputs: Tensor, apply: Apply = "predicted", explain: Explain = False
    ) -> tuple[Tensor, GateOutput]:
        """Mask the outputs as a `Gate` would, by the one mask there is; `open` masks nothing."""
        mask = self.mask.expand(outputs.shape[:2])
        if apply == "open":
            return outputs, GateOutput(torch.ones_like(mask))
        return silence(outputs, mask), GateOutput(mask)


class DynamicModel(nn.Module):
    """A network that computes, for each input, only the filters that it needs.

    Made by `ftwt.convert`. Called like the network it was made from, it returns what that returns.
    Its parameters keep the names they had, under `network.`.

    Attributes:
        network: The traced network with its gates.
        units: The gated units, in execution order.
        reasons: Convolution, or linear layer where these were asked for -> why it is not a unit.
        config: The options of `convert`, as JSON values.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        units: tuple[Unit, ...],
        reasons: Mapping[str, str],
        example: tuple[Any, ...],
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.units, self.reasons, self.config = units, dict(reasons), dict(config)
        self.input_shape = tuple(example[0].shape[1:])
        self.channels = ChannelGraph(network, example)
        taken = [str(n.target) for n in network.graph.nodes if n.op == "placeholder"]
        self.inputs = {name: None for name in taken if name not in ARGUMENTS}
        self._held = False

    def forward(
        self,
        *inputs: Any,
        gates: Apply = "predicted",
        return_gates: bool | Literal["masks", "saliency"] = False,
        **named: Any,
    ) -> Any:
        """Run the network.

        Args:
            inputs: What the original network takes, as far as its example had it.
            gates: The masks to apply: `predicted`, the `target` masks themselves, or none (`open`).
            return_gates: Return what the gates decided too: all of it (True: logits, targets and
                saliencies are computed even where `gates` does not need them), only the `masks`, or
                these and the `saliency`.
            named: Inputs by the original's names.

        Returns:
            The network's output; with `return_gates`, that and a dict unit -> `GateOutput`.

        Raises:
            ValueError: If `gates` is none of these, or the example had no such inputs, or one is a
                tensor whose elements are no real numbers one by one.
        """
        if gates not in get_args(Apply):
            raise ValueError(f"gates={gates!r}: use one of {', '.join(get_args(Apply))}")
        if return_gates not in (False, True, "masks", "saliency"):
            raise ValueError(f"return_gates={return_gates!r}: use False, True, masks or saliency")
        if len(inputs) > len(self.inputs) or not named.keys() <= self.inputs.keys():
            raise ValueError(
                f"{len(inputs)} inputs and {list(named)} by name, for a network that was converted "
                f"with {', '.join(self.inputs)}; convert with an example of all inputs, in order"
            )
        explain: Explain = return_gates if return_gates != "masks" else False
        try:
            output, decided = self.network(*inputs, **named, ftwt_apply=gates, ftwt_explain=explain)
        except (RuntimeError, TypeError):
            for part in inputs:  # sparse, complex or of no values: torch does not say so
                if isinstance(part, Tensor):
                    refuse_unreadable(part, "an input")
            raise
        return (output, decided) if return_gates else output

    def check_input(self, images: Tensor) -> None:
        """Refuse images of another size than the network was converted for, or not finite.

        What is not finite is not looked for in training mode, where the loss says so.

        Raises:
            ValueError: If (C, *spatial) differs, since work is counted for one size; or if an image
                holds a value that is not finite, since no mask of it means anything.
        """
        if tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])} for a network converted for "
                f"{self.input_shape}; resize them, or convert with an example of their size"
            )
        if not self.training:
            refuse_spoilt(images)

    @property
    def gates(self) -> dict[str, Gate | FrozenGate]:
        """The gates by unit, in execution order; units that inherit a mask have none."""
        return {unit.name: self._gate(unit.name) for unit in self.units if unit.inherits is None}

    @property
    def predictors(self) -> dict[str, MaskPredictor]:
        """The predictors by unit; a static twin has none."""
        return {name: g.predictor for name, g in self.gates.items() if isinstance(g, Gate)}

    def predictor_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the mask loss trains."""
        for predictor in self.predictors.values():
            yield from predictor.parameters()

    def network_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the network itself."""
        held = {id(parameter) for parameter in self.predictor_parameters()}
        yield from (parameter for parameter in self.parameters() if id(parameter) not in held)

    def hold_predictors(self, held: bool = True) -> None:
        """Let the predictors stand still, their normalisation too, or let them learn again."""
        self._held = held
        for parameter in self.predictor_parameters():
            parameter.requires_grad_(not held)
        for predictor in self.predictors.values():
            predictor.train(self.training and not held)

    def train(self, mode: bool = True) -> DynamicModel:
        """Set training mode; predictors that are held stay in eval mode."""
        super().train(mode)
        if self._held:
            for predictor in self.predictors.values():
                predictor.eval()
        return self

    @property
    def r(self) -> dict[str, float]:
        """The share of the mass that each unit's targets keep."""
        return {name: float(g.r) for name, g in self.gates.items() if isinstance(g, Gate)}

    def set_r(self, r: float | Mapping[str, float]) -> None:
        """Set one r for all units, or each named unit's own.

        Raises:
            ValueError: If a value lies outside (0, 1] or a unit does not exist.
        """
        gates = {name: g for name, g in self.gates.items() if isinstance(g, Gate)}
        for name, value in check_r(r, gates).items():
            gates[name].r.fill_(value)

    def macs(self, masks: Mapping[str, Tensor]) -> MaskedMacs:
        """Count the multiply-accumulates that masks leave.

        Args:
            masks: Unit -> (N, C) bool, as `GateOutput.mask`; missing units compute everything.

        Returns:
            Counts per sample, `executed` and `published`.
        """
        return masked_macs(self.channels, self.units, self.predictors, masks)

    def with_fixed(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the masks that are the same for every input, for `macs`.

        They hold whatever the gates decide: a fixed unit has no targets, and while all gates stand
        open its mask is not what it will compute.

        Args:
            masks: Unit -> (N, C) bool.

        Returns:
            These, and those of the fixed units in place of what is given for them.
        """
        samples = len(next(iter(masks.values()))) if masks else 1
        fixed = {name: g.mask for name, g in self.gates.items() if isinstance(g, FrozenGate)}
        return {**masks, **{name: mask.expand(samples, -1) for name, mask in fixed.items()}}

    def freeze(self, batches: Batches, *, accelerator: Any = None) -> DynamicModel:
        """Return the static twin: each unit computes its most frequent filters, for every input.

        Args:
            batches: (images, labels), or images alone, over which the gates' masks are counted.
            accelerator: As in `firing_rates`.

        Returns:
            A copy without predictors, with as many filters a unit as this network computes on
            average (rounded), trainable like any other network.
        """
        masks = {}
        for name, rate in self.firing_rates(batches, accelerator=accelerator).items():
            kept = max(1, round(float(rate.sum())))
            masks[name] = torch.zeros_like(rate, dtype=torch.bool)
            masks[name][rate.argsort(descending=True, stable=True)[:kept]] = True
        return self.fix(masks)

    def fix(self, masks: Mapping[str, Tensor], *, partly: bool = False) -> DynamicModel:
        """Return a static network: each unit computes the same filters for every input.

        Args:
            masks: Unit -> (C,) bool, true where a filter is computed; all units with a gate.
            partly: Units without a mask keep their gates.

        Returns:
            A copy without predictors where it is fixed, trainable like any other network.

        Raises:
            ValueError: A unit has no mask, does not exist, or has another number of filters; or a
                mask keeps no filter.
        """
        for name in masks if partly else {**self.gates, **masks}:
            check_unit(name, self.gates)
            width = next(unit.out_channels for unit in self.units if unit.name == name)
            mask = masks.get(name, torch.empty(0))
            if mask.shape != (width,) or not mask.any():
                raise ValueError(
                    f"the mask of unit {name!r} has shape {tuple(mask.shape)} and keeps "
                    f"{int(mask.sum())} filters; give a bool for each of {width}, one of them true"
                )
        twin = copy.deepcopy(self)
        for name, mask in masks.items():
            twin._set_gate(name, FrozenGate(mask))
        fixed = [name for name, g in twin.gates.items() if isinstance(g, FrozenGate)]
        twin.config["static"] = sorted(fixed) if twin.predictors else True
        return twin.to(next(self.parameters()).device)

    @torch.no_grad()
    def firing_rates(self, batches: Batches, *, accelerator: Any = None) -> dict[str, Tensor]:
        """Return unit -> (C,) share of the samples for which each filter is computed.

        Args:
            batches: (images, labels), of which the labels are not used; or images alone.
            accelerator: An `accelerate.Accelerator` or `PartialState`, if each process holds its
                own part of the images: then all return the shares among all of them.
        """
        device = next(self.parameters()).device
        none = torch.zeros(1, dtype=torch.float64, device=device)
        sums: dict[str, Tensor] = {
            unit.name: none.repeat(unit.out_channels)
            for unit in self.units
            if unit.inherits is None
        }
        samples = none.clone()
        with evaluating(self):
            for batch in batches:
                images = images_of(batch)
                self.check_input(images)
                try:
                    _, gates = self(images.to(device), return_gates="masks")
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    raise cannot_take((images,), error) from error
                for name, gate in gates.items():
                    sums[name] += gate.mask.sum(0, dtype=torch.float64)
                samples += len(images)
        if accelerator is not None and accelerator.num_processes > 1:
            from accelerate.utils import reduce

            samples, *counts = reduce([samples, *sums.values()], "sum")
            sums = dict(zip(sums, counts, strict=True))
        if not samples:
            raise ValueError("no batches to count masks on; give (images, labels) batches")
        return {name: total / samples for name, total in sums.items()}

    def restore(self) -> fx.GraphModule:
        """Return a plain network with this one's weights and no gates, under the original names."""
        network = copy.deepcopy(self.network)
        output = next(node for node in network.graph.nodes if node.op == "output")
        output.args = (output.args[0][0],)
        for node in reversed(list(network.graph.nodes)):
            if "masked" in node.meta:
                node.replace_all_uses_with(node.args[0].args[1])
            elif {"inherits", "moved"} & node.meta.keys():
                node.replace_all_uses_with(node.args[0])
            elif not {"gate", "info"} & node.meta.keys() and node.target not in ARGUMENTS:
                continue
            network.graph.erase_node(node)
        delattr(network, GATES)
        network.recompile()
        return network

    def summary(self) -> Summary:
        """Return a table of the units, and of every layer that could be one, with the reason."""
        return Summary(self.channels, self.units, self.reasons, self.r, self.predictors)

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ValueError(
            "a dynamic network is not pickled, so torch.save cannot write it and another process "
            "cannot be sent it: its graph would come back without its gates' places. "
            "ftwt.save_pretrained writes it and ftwt.from_pretrained reads it; torch.save of its "
            "state_dict() works"
        )

    def _gate(self, name: str) -> Gate | FrozenGate:
        return self.network.get_submodule(f"{GATES}.{name}")  # type: ignore[return-value]

    def _set_gate(self, name: str, gate: nn.Module) -> None:
        parent, _, leaf = f"{GATES}.{name}".rpartition(".")
        setattr(self.network.get_submodule(parent), leaf, gate)


def check_unit(name: str, known: Iterable[str]) -> None:
    """Refuse the name of a unit that does not exist.

    Raises:
        ValueError: It is none of the known ones; the message suggests the nearest.
    """
    if name not in (names := list(known)):
        raise ValueError(f"no unit {name!r}; {nearest(name, names)}")


def refuse_dense(network: Any) -> None:
    """Refuse what is no dynamic network where only one will do.

    Raises:
        ValueError: What it is instead, and how to make one.
    """
    if not isinstance(network, DynamicModel):
        raise ValueError(
            f"{type(network).__name__} is no DynamicModel; ftwt.convert(model, example) makes one"
        )


def refuse_static(dynamic: DynamicModel) -> None:
    """Refuse a network without predictors to fit."""
    refuse_dense(dynamic)
    if not dynamic.predictors:
        raise ValueError("the network has no predictors to fit: it is static, or has no unit")


def check_r(r: float | Mapping[str, float], units: Iterable[str]) -> dict[str, float]:
    """Return r for each unit that it names, all of them if it is one number.

    Raises:
        ValueError: If a value lies outside (0, 1] or a unit does not exist.
    """
    known = list(units)
    values = dict(r) if isinstance(r, Mapping) else dict.fromkeys(known, r)
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"r names an unknown unit {name!r}; {nearest(name, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ValueError(
                f"r={value!r} for unit {name!r}: r is the share of the mass to keep, in (0, 1]; "
                "1 keeps every filter that fires, 0.9 is a good start"
            )
    return {name: float(value) for name, value in values.items()}
