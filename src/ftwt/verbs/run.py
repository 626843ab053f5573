"""The verb that runs a network: run. Of a file it needs numpy, Pillow, rich and tyro alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from ..deployment.classify import classify, is_compiled
from ..files.json import write_json
from ..runtime.engine import Kind
from .options import Json, Prepared, Weights, named


@dataclass(frozen=True)
class RunCommand:
    """Show images to a network: its guesses, and what each image took."""

    network: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME.ftwt|MODEL")]
    """What `ftwt compile` wrote; or what it takes, which is then compiled for the moment."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE ...")]
    """Image files; resized, cut and normalised as the network needs them."""
    weights: Weights = None
    top: int = 5
    """How many guesses to tell."""
    engine: Kind = "native"
    """Which engine; reference is slow."""
    threads: int = 1
    """Threads of the native engine."""
    output: str | None = None
    """File to write the answers to, as JSON."""
    as_json: Json = False
    prepared: Prepared = field(default_factory=Prepared)

    def __call__(self) -> Any:
        """Classify."""
        with self._file() as path:
            result = classify(
                path,
                self.images,
                top=self.top,
                engine=self.engine,
                threads=self.threads,
                normal=self.prepared.normal,
                name=self.network,
            )
        if self.output:
            write_json(self.output, result.to_json())
        return result.to_json() if self.as_json else [result]

    def _file(self) -> AbstractContextManager[str]:
        if is_compiled(self.network):
            return nullcontext(self.network)  # which needs no torch
        from ..deployment.deploy import compiled

        data = self.prepared.data(self.network, self.weights)
        return compiled(named(self.network, self.weights), data=data, engine=self.engine)
