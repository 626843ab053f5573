"""The verbs that make engines: compile, bench."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import tyro

from ..config import DataConfig
from ..contest.bench import BATCHES, LOOKED_AT, RIVALS, SINGLES, bench
from ..deployment.deploy import Economies, calibration, deploy
from ..lowering.compile import Precision
from ..lowering.quantize import CALIBRATE
from ..models.init import measure_norms
from ..networks.sources import resolve
from ..networks.splits import load_splits
from ..processes import first
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook
from ..runtime.engine import Kind
from .options import Json, Network, Weights, named

NOISE = 8  # images that random weights get their batch norms from


@dataclass(frozen=True)
class CompileCommand:
    """Compile a trained network to one file, which runs without torch.

    --layout is exact; the other economies change which masks are applied to images unlike those
    that they were judged by.
    """

    model: Network
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """File to write, NAME.ftwt."""
    weights: Weights = None
    engine: Kind = "native"
    """Which engine shows images to the gates; reference is slow."""
    threads: int = 1
    """Threads with which --tune times."""
    precision: Precision = "f32"
    """int8: eight-bit maps and weights; layers that would lose too much stay float."""
    calibrate: int = CALIBRATE
    """Training images that the ranges of eight-bit maps are taken from; no labels are read."""
    as_json: Json = False
    economies: Economies = field(default_factory=Economies)
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> Any:
        """Compile, and write the file."""
        result = deploy(
            named(self.model, self.weights),
            self.output,
            economies=self.economies,
            precision=self.precision,
            calibrate=self.calibrate,
            data=self.data,
            engine=self.engine,
            threads=self.threads,
        )
        return result.to_json() if self.as_json else [result]


@dataclass(frozen=True)
class BenchCommand:
    """Time a network beside PyTorch, ONNX Runtime and OpenVINO, all in one run.

    The gates of a run decide on test images; without trained gates, --keep forces some. Dense
    models by name get random weights.
    """

    model: Network
    weights: Weights = None
    keep: float | None = None
    """Let each gate keep this share of its filters, drawn by lot for each image."""
    threads: int = 1
    """Threads of each contestant."""
    batch: int = 1
    """Images at a time."""
    rounds: int = 15
    """How often each contestant runs each of 16 batches, 128 beside a second look."""
    singles: int = SINGLES
    """Images that the gated engine also runs one by one, to set latency against MACs."""
    rivals: tuple[str, ...] = RIVALS
    """Who takes part beside our engine."""
    engine: Kind = "native"
    """Which of our engines; reference is slow."""
    precision: Precision = "f32"
    """Of our engines: int8 for eight-bit maps and weights."""
    realtime: bool = False
    """Time at real-time priority: other processes wait meanwhile (Linux; root may)."""
    seed: int = 0
    """Of random weights, images and masks."""
    output: str | None = None
    """File to write the figures to, as JSON."""
    as_json: Json = False
    economies: Economies = field(default_factory=Economies)
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> Any:
        """Time them."""
        torch.manual_seed(self.seed)
        source, images = resolve(self.model, self.weights), None
        network = source.load(passes=True).cpu()
        example = torch.zeros(1, *source.shape(self.data))
        if source.random:
            measure_norms(network, torch.randn(NOISE, *example.shape[1:]))
        if self.keep is None and isinstance(network, DynamicModel | SecondLook):
            looks = isinstance(network, SecondLook)
            wanted = max(self.singles, (LOOKED_AT if looks else BATCHES) * self.batch)
            test = load_splits(self.data, source=source).test
            images = torch.cat([part for _, part in first(test, wanted)]).cpu()
        options = self.economies.options(self.data, source=source)
        if self.precision == "int8" and self.keep is None:
            options["calibrate"] = calibration(self.data, source=source)
        result = bench(
            network,
            example,
            keep=self.keep,
            images=images,
            rivals=self.rivals,
            threads=self.threads,
            batch=self.batch,
            rounds=self.rounds,
            singles=self.singles,
            seed=self.seed,
            engine=self.engine,
            precision=self.precision,
            realtime=self.realtime,
            name=self.model,
            config=self,
            **options,
        )
        if self.output:
            result.save(self.output)
        return result.to_json() if self.as_json else [result]
