"""The verb that writes networks for other runtimes: export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from ..deployment.deploy import export_trained
from .options import Json, Network, Prepared, Weights, named


@dataclass(frozen=True)
class ExportCommand:
    """Export a trained network, gates and all, to ONNX or to torch.export's format.

    The file gives the network's answers in a dense network's time: it computes every filter and
    multiplies by the masks. `ftwt compile` writes what skips filters.
    """

    model: Network
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """File to write, NAME.onnx or NAME.pt2."""
    weights: Weights = None
    masks: bool = False
    """Give each unit's mask beside the output."""
    batch_size: int | None = None
    """Let the file take this many images alone, instead of any number."""
    opset: int | None = None
    """Of ONNX's operators, 18 or later; 23 if not given."""
    check: bool = True
    """Run the file and hold it to PyTorch, before it gets its name."""
    as_json: Json = False
    prepared: Prepared = field(default_factory=Prepared)

    def __call__(self) -> Any:
        """Export, and check."""
        result = export_trained(
            named(self.model, self.weights),
            self.output,
            data=self.prepared.data(self.model, self.weights),
            masks=self.masks,
            batch_size=self.batch_size,
            opset=self.opset,
            check=self.check,
        )
        return result.to_json() if self.as_json else [result]
