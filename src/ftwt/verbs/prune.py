"""The verb that makes a trained network cheaper."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from ..config import DataConfig
from ..contest.bench import bench
from ..contest.result import GATED, OURS
from ..evaluation.evaluate import evaluate
from ..files.json import write_json
from ..lowering.compile import compile
from ..networks.pretrained import save_pretrained
from ..networks.sources import check_classes, find_network, name_of
from ..networks.splits import load_splits
from ..pruning.dynamic import DynamicModel
from ..records.folder import MODEL
from ..runs.prune import Gates, Pruned, prune
from ..runtime.engine import Kind
from .options import Json, Network

ENGINE, RESULT = "net.ftwt", "prune.json"  # files in the output folder
RIVALS = ("openvino", "onnxruntime")
TIMED = 64  # test images


@dataclass(frozen=True)
class PruneCommand:
    """Make a trained network cheaper in minutes, without labels: fixed masks or gates, repaired.

    Writes the network (model/), a file for the engine (net.ftwt) and the figures (prune.json).
    """

    model: Network
    """A model's name (`ftwt models`), the folder of a run, or a repository OWNER/NAME on the
    Hugging Face Hub."""
    reduction: float | None = None
    """Share of the multiply-accumulates to save, in (0, 1)."""
    latency_ms: float | None = None
    """Instead: milliseconds that one image may take on this machine, on one thread."""
    gates: Gates = "auto"
    """static: the same filters for every image; dynamic: chosen for each; auto: the better one."""
    images: int = 2048
    """Training images to fit to; their labels are not read."""
    engine: Kind = "native"
    """Which of our engines to time and write a file for; reference is slow."""
    output: str = "runs/pruned"
    """Folder for the files."""
    as_json: Json = False
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> Any:
        """Prune, evaluate, time, compile and save."""
        folder = Path(self.output)
        if (folder / RESULT).exists():
            raise ValueError(f"{folder} holds a pruned network already; choose another --output")
        network, name = find_network(self.model), name_of(self.model)
        if isinstance(network, DynamicModel):
            raise ValueError(f"{self.model} is pruned already; name a dense network")
        splits = load_splits(self.data, model=name)
        check_classes(network, name, splits)
        pruned = prune(
            network,
            splits.plain,
            reduction=self.reduction,
            latency_ms=self.latency_ms,
            gates=self.gates,
            images=self.images,
            config=self,
        )
        accuracy = {"dense": evaluate(network, splits.test)} | {
            one.kind: evaluate(one.network, splits.test) for one in pruned.candidates
        }
        images = next(iter(splits.test))[0][:TIMED].cpu().contiguous()
        timed = bench(
            pruned.network,
            images=images,
            rivals=RIVALS,
            rounds=5,
            singles=0,
            engine=self.engine,
            name=self.model,
        )
        save_pretrained(pruned.network, folder / MODEL, name=name)
        compile(pruned.network, engine=self.engine).save(folder / ENGINE)
        values = {
            "model": self.model,
            "pruned": pruned.to_json(),
            "test": {kind: found.to_json() for kind, found in accuracy.items()},
            "latency": timed.to_json(),
        }
        write_json(folder / RESULT, values)
        if self.as_json:
            return values
        times = {timing.name: timing.latency_ms for timing in timed.timings}
        return [pruned, _table(pruned, accuracy), timed, f"all of it: {folder}", *_slower(times)]


def _table(pruned: Pruned, accuracy: dict[str, Any]) -> Table:
    """Accuracy and work on test images, dense beside pruned."""
    images = next(iter(accuracy.values())).images
    table = Table("", title=f"on {images:,} test images")
    for kind in accuracy:
        table.add_column(f"{kind}, chosen" if kind == pruned.kind else kind, justify="right")
    table.add_row("top-1 accuracy", *(f"{found.top1:.2%}" for found in accuracy.values()))
    macs = (f"{found.executed_macs / 1e6:.2f} M" for found in accuracy.values())
    table.add_row("MACs executed per image", *macs)
    return table


def _slower(times: dict[str, float]) -> list[str]:
    """Say so if a rival's dense network is faster than the pruned one."""
    ours = times.get(GATED)
    if ours is None:
        return []
    return [
        f"{name}'s dense network is faster than the pruned one: {ms:.2f} ms and {ours:.2f} ms"
        for name, ms in times.items()
        if name not in OURS and ms < ours
    ]
