"""Outputs of networks for all test images: what they are worth, and files that keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ftwt.files.tensors import load_tensors, save_tensors
from ftwt.pruning.dynamic import DynamicModel


class Scored(NamedTuple):
    """Of each test image."""

    outputs: Tensor  # (N, classes)
    right: Tensor  # (N,) bool
    same: Tensor  # (N,) bool: the dense network's guess
    saved: Tensor  # (N,) executed reduction

    def of(self, images: Tensor) -> Scored:
        """Of some images alone."""
        return Scored(*(part[images] for part in self))


@torch.inference_mode()
def score(network: DynamicModel, test: list[tuple[Tensor, Tensor, Tensor]]) -> Scored:
    """Evaluate a network on all test images."""
    parts = []
    for images, _, _ in test:
        outputs, gates = network.eval()(images, return_gates="masks")
        work = network.macs({name: gate.mask for name, gate in gates.items()})
        parts.append((outputs, work.reduction.expand(len(images))))
    return scored_of(*(torch.cat(part) for part in zip(*parts, strict=True)), test)


def scored_of(outputs: Tensor, saved: Tensor, test: list[tuple[Tensor, Tensor, Tensor]]) -> Scored:
    """What outputs for all test images are worth, and what each saved."""
    labels = torch.cat([right for _, right, _ in test])
    dense = torch.cat([found for _, _, found in test])
    guesses = outputs.argmax(1)
    return Scored(outputs, guesses == labels, guesses == dense.argmax(1), saved)


class Kept:
    """Outputs of candidates, kept in files: what is there need not be fitted again.

    Args:
        folder: Of the files; None keeps nothing.
        subject: What all were fitted to: network, images and seed, in a file's name.
        commit: Of the code that fits, as in `provenance`.
    """

    def __init__(self, folder: Path | None, subject: str, commit: Any) -> None:
        self.folder, self.subject, self.commit = folder, subject, commit

    def path(self, name: str) -> Path | None:
        """Where a candidate's outputs are kept."""
        told = f"{self.subject}-{name}.safetensors".replace(" ", "-")
        return None if self.folder is None else self.folder / told

    def read(
        self, name: str, test: list[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Scored, dict[str, Any]] | None:
        """A candidate's outputs, seconds and commit, if they are there."""
        path = self.path(name)
        if path is None or not path.exists():
            return None
        tensors, told = load_tensors(path)
        return scored_of(tensors["outputs"], tensors["saved"], test), told

    def write(self, name: str, scored: Scored, told: dict[str, Any]) -> None:
        """Keep a candidate's outputs, with the commit that fitted it."""
        path = self.path(name)
        if path is not None:
            tensors = {"outputs": scored.outputs, "saved": scored.saved}
            save_tensors(path, tensors, told | {"fitted_at": self.commit})
