"""The verbs that make a trained network cheaper: prune, and the demo, which is one pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..config import DataConfig
from ..lowering.compile import Precision
from ..records.folder import PAGE
from ..runs.prune import Gates
from ..runs.pruned import prune_named
from ..runtime.engine import Kind
from .options import Json, Network, Weights

DEMO = "cifar10-resnet20"


@dataclass(frozen=True)
class PruneCommand:
    """Make a trained network cheaper in minutes, without labels: fixed masks, gates, second looks.

    Writes the network (model/), a file for the engine (net.ftwt), the figures (prune.json) and a
    page (index.html).
    """

    model: Network
    weights: Weights = None
    reduction: float | None = None
    """Share of the multiply-accumulates to save, in (0, 1)."""
    latency_ms: float | None = None
    """Instead: milliseconds that one image may take on this machine, on one thread."""
    gates: Gates = "auto"
    """static: the same filters for every image; dynamic: chosen for each; mixed: a gate or a
    fixed mask for each unit; second-look: few filters first, all of them for images that these
    are unsure of; auto: the best one. static is always made, to compare with."""
    images: int = 2048
    """Training images to fit to; their labels are not read."""
    epochs: int = 0
    """Then train each candidate so long, with labels and the dense network as teacher."""
    precision: Precision = "f32"
    """Of our engines that are timed, and of the file: int8 for eight-bit maps and weights."""
    engine: Kind = "native"
    """Which of our engines to time and write a file for; reference is slow."""
    realtime: bool = False
    """Time at real-time priority: other processes wait meanwhile (Linux; root may)."""
    output: str = "runs/pruned"
    """Folder for the files."""
    as_json: Json = False
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> Any:
        """Prune, evaluate, time, compile, save and show."""
        result = prune_named(
            self.model,
            self.weights,
            data=self.data,
            output=self.output,
            reduction=self.reduction,
            latency_ms=self.latency_ms,
            gates=self.gates,
            images=self.images,
            epochs=self.epochs,
            precision=self.precision,
            engine=self.engine,
            realtime=self.realtime,
            config=self,
        )
        if self.as_json:
            return result.to_json()
        page = f"page, to open in a browser: {result.folder / PAGE}"
        return [result.pruned, result.latency, result, f"all of it: {result.folder}   {page}"]


@dataclass(frozen=True)
class DemoCommand:
    """Prune a trained ResNet-20 on the images in the package: what it costs, what it saves."""

    reduction: float = 0.3
    """Share of the multiply-accumulates to save, in (0, 1)."""
    output: str = "runs/demo"
    """Folder for the files and the page."""
    precision: Precision = "f32"
    """Of our engines that are timed, and of the file: int8 for eight-bit maps and weights."""
    engine: Kind = "native"
    """Which of our engines to time and write a file for; reference is slow."""
    realtime: bool = False
    """Time at real-time priority: other processes wait meanwhile (Linux; root may)."""
    as_json: Json = False

    def __call__(self) -> Any:
        """Do what `ftwt prune` does with the embedded images."""
        return PruneCommand(
            model=DEMO,
            reduction=self.reduction,
            precision=self.precision,
            engine=self.engine,
            realtime=self.realtime,
            output=self.output,
            as_json=self.as_json,
            data=DataConfig(dataset="cifar10-embedded", validation=500),
        )()
