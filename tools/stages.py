"""What the coverage sweep does with one network: each stage says yes, or why not in one line."""

from __future__ import annotations

import copy
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ftwt
from ftwt import models
from ftwt.pruning.method import mask_loss

SIZES = (64, 128, 224)  # of images: the first that the network takes, else its own
LARGE = 200e6  # parameters: larger networks are converted and compared alone
STAGES = ("convert", "open", "macs", "estimate", "step", "save", "engine")
TOLERANCE = 1e-4  # of the largest output in double precision, for the native engine
WORSE = 10  # or as many times PyTorch's own error: some networks amplify every rounding
SHARE_OFF = 1e-3  # of the MACs, between the two counts
CALM = 0.5  # logits lie about this far on either side of the threshold, by lot


def examine(name: str, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """Take a network through all stages, or some, of which `convert` is the first.

    Args:
        name: `torchvision:NAME` or `timm:NAME`; its weights are random.
        stages: Which, in the order of `STAGES`.

    Returns:
        JSON values: what it is, and under `stages` for each stage `ok`, its figures, and if it is
        not ok a `reason` and an `end`: `refused` (a ValueError of ours), `wrong` (a figure that
        should be equal is not), `crashed` (any other error) or `size` (left out).
    """
    torch.manual_seed(0)
    started = time.perf_counter()
    model = models.create(name).eval()
    images = _images(model)
    told: dict[str, Any] = {
        "name": name,
        "image": list(images.shape[1:]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "convolutions": sum(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules()),
        "attention": sum("attention" in type(m).__name__.lower() for m in model.modules()),
        "stages": {},
    }
    work = _Work(model, images)
    for stage in stages:
        if stage not in ("convert", "open", "macs") and told["parameters"] > LARGE:
            reason = f"more than {LARGE / 1e6:.0f} M parameters: converted and compared alone"
            told["stages"][stage] = {"ok": False, "end": "size", "reason": reason}
            continue
        told["stages"][stage] = _attempt(getattr(work, stage))
        if stage == "convert" and not told["stages"][stage]["ok"]:
            break
    told["seconds"] = round(time.perf_counter() - started, 1)
    return told


class Wrong(Exception):
    """A figure that should be equal is not."""


class NoGate(Exception):
    """There is nothing to do a stage with."""


def _attempt(stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"ok": True} | stage()
    except Wrong as error:
        end, said = "wrong", str(error)
    except NoGate:
        end, said = "refused", "the network has no gate"
    except (ValueError, NotImplementedError) as error:
        ours = any("ftwt" in str(f.filename) for f in _frames(error)[-1:])
        end, said = "refused" if ours else "crashed", str(error)
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError) or "allocate memory" in str(error)
        end, said = "size" if full else "crashed", f"{type(error).__name__}: {error}"
    except Exception as error:  # what this sweep is for
        end, said = "crashed", f"{type(error).__name__}: {error}"
    return {"ok": False, "end": end, "reason": " ".join(said.split())[:400]}


def _frames(error: BaseException) -> list[Any]:
    import traceback

    return list(traceback.extract_tb(error.__traceback__))


def _images(model: nn.Module) -> Tensor:
    """Return two images of the smallest size that the network takes."""
    config = getattr(model, "default_cfg", None) or {}
    own = config.get("input_size", (3, 224, 224))
    if config.get("fixed_input_size"):
        return torch.randn(2, *own)
    for size in (*SIZES, own[-1]):
        images = torch.randn(2, own[0], size, size)
        try:
            with torch.no_grad():
                model(images)
            return images
        except (RuntimeError, AssertionError, ValueError, IndexError, TypeError):
            continue
    return images


class _Work:
    """A network on its way through the stages."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.dynamic: Any = None

    def convert(self) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no unit is told in the figures
            self.dynamic = ftwt.convert(self.model, self.images)
        layers = {layer.name: layer.macs for layer in self.dynamic.channels.layers}
        gated = sum(layers[unit.name] for unit in self.dynamic.units)
        nodes = self.dynamic.network.graph.nodes
        return {
            "units": len(self.dynamic.units),
            "inherit": sum(unit.inherits is not None for unit in self.dynamic.units),
            "gated_share": round(gated / max(1, sum(layers.values())), 4),
            "one_size": any(getattr(n.target, "__name__", "") == "expect_size" for n in nodes),
            "without_rule": sorted({name.split(" (")[-1][:-1] for name in self._unknown}),
        }

    @property
    def _unknown(self) -> tuple[str, ...]:
        return self.dynamic.channels.unknown

    def open(self) -> dict[str, Any]:
        with torch.no_grad():
            wanted = tree_leaves(self.model(self.images))
            found = tree_leaves(self.dynamic(self.images, gates="open"))
        if len(wanted) == len(found) and all(map(torch.equal, wanted, found)):
            return {}
        pairs = zip(wanted, found, strict=True)
        off = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        raise Wrong(f"outputs deviate by {off:.1e} of the largest")

    def macs(self) -> dict[str, Any]:
        """Dense MACs beside the second count, of one image or of two: some ask how many."""
        dense, uncounted = self.dynamic.macs({}).dense, sorted(self.dynamic.channels.uncounted)
        plain = copy.deepcopy(self.model)
        counts = [
            oracle.count(plain, images) / len(images) for images in (self.images[:1], self.images)
        ]
        nearest = min(counts, key=lambda count: abs(dense - count))
        off = abs(dense / nearest - 1)
        if off > SHARE_OFF and not uncounted:
            raise Wrong(f"{dense:,} MACs, the second count {nearest:,.0f}")
        return {"dense": dense, "off": round(off, 6), "uncounted": uncounted}

    def estimate(self) -> dict[str, Any]:
        self._units()
        plan = ftwt.estimate(self.dynamic, [(self.images, torch.zeros(2, dtype=torch.long))])
        if not all(map(math.isfinite, plan.reduction)):
            raise Wrong("the curve is not finite")
        return {"reduction_at_0.9": round(plan.reduction_at(0.9), 4)}

    def step(self) -> dict[str, Any]:
        """One step of training: the losses are finite, and predictors and network move."""
        self._units()
        dynamic = self.dynamic.train()
        biases = {name: p.linear.bias for name, p in dynamic.predictors.items()}
        before = {name: bias.detach().clone() for name, bias in biases.items()}
        optimizer = torch.optim.SGD(dynamic.parameters(), lr=1e-3)
        output, gates = dynamic(self.images, return_gates=True)
        task = F.cross_entropy(tree_leaves(output)[0].flatten(1), torch.tensor([0, 1]))
        loss = task + mask_loss(gates)
        loss.backward()
        optimizer.step()
        dynamic.eval()
        total = float(loss.detach())
        if not math.isfinite(total):
            raise Wrong(f"the loss is {total}")
        if still := [name for name, bias in biases.items() if torch.equal(bias, before[name])]:
            raise Wrong(f"the predictor of {still[0]} does not move")
        return {"loss": round(total, 4), "mask_loss": round(total - float(task.detach()), 4)}

    def save(self) -> dict[str, Any]:
        self._draw()
        with tempfile.TemporaryDirectory() as folder:
            ftwt.save_pretrained(self.dynamic, folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                again = ftwt.from_pretrained(folder, model=self.model)
        with torch.no_grad():
            pairs = zip(
                tree_leaves(self.dynamic(self.images)), tree_leaves(again(self.images)), strict=True
            )
            if not all(torch.equal(a, b) for a, b in pairs):
                raise Wrong("the loaded network computes something else")
        return {}

    def engine(self) -> dict[str, Any]:
        """Compile, with gates that keep about half, and hold it to PyTorch."""
        self._draw()
        engine = ftwt.compile(self.dynamic)
        found, stats = engine.run(self.images.numpy())
        with torch.no_grad():
            output, gates = self.dynamic(self.images, return_gates="masks")
        same = torch.ones(len(self.images), dtype=torch.bool)
        for unit, gate in gates.items():
            same &= (torch.from_numpy(stats.masks[unit]) == gate.mask).all(1)
        if not same.any():
            raise Wrong("the engine decides otherwise for both images")
        exact = copy.deepcopy(self.dynamic).double()
        for predictor in exact.predictors.values():
            predictor.float()  # they compute in single precision, whatever the network does
        with torch.no_grad():
            answer = tree_leaves(exact(self.images.double()))[0][same].flatten(1)
        largest = answer.abs().max()
        off = float((torch.from_numpy(found)[same].flatten(1) - answer).abs().max() / largest)
        own = float((tree_leaves(output)[0][same].flatten(1) - answer).abs().max() / largest)
        if not off <= max(TOLERANCE, WORSE * own):
            raise Wrong(f"the engine is off by {off:.1e} of the largest output, PyTorch {own:.1e}")
        count = self.dynamic.macs({unit: gate.mask for unit, gate in gates.items()}).executed
        counted = torch.from_numpy(stats.executed_macs).double()[same]
        over = float((counted / count[same] - 1).max())
        if gates and (counted < count[same]).any():
            raise Wrong(f"the engine does {-over:.2%} fewer MACs than are counted")
        deviations = {"deviation": float(f"{off:.1e}"), "deviation_pytorch": float(f"{own:.1e}")}
        return deviations | {"images_compared": int(same.sum()), "macs_over": round(over, 4)}

    def _units(self) -> None:
        if not self.dynamic.gates:
            raise NoGate

    def _draw(self) -> None:
        """Let the predictors decide by lot, each for about half of its filters."""
        random = torch.Generator().manual_seed(1)
        self.dynamic.eval()
        for predictor in self.dynamic.predictors.values():
            bias = predictor.linear.bias
            signs = torch.randint(0, 2, bias.shape, generator=random) * 2 - 1
            bias.data.copy_(signs * CALM)
