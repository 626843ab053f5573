"""What networks achieve, and compute, on corrupted images: side by side, on the same images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from ..data import Batches, Images
from ..data.corruptions import CORRUPTIONS, SEVERITIES, Published, check_corruption, corrupt
from ..data.images import balanced
from ..files.console import PlainConsole
from ..files.json import write_json
from ..files.tables import Shown
from ..records.corruptions import Corrupted, Figures, NetworkRobustness, mean_of
from ..records.evaluation import Evaluation
from .evaluate import device_of, evaluate

BATCH = 500
SUBSET_SEED = 0  # a fixed subset: results with the same number of images are of the same images
MADE, READ = "ftwt", "cifar-10-c"  # where corrupted images come from


@dataclass(frozen=True)
class Robustness(Shown):
    """What corruption does to several networks, by the name each was given."""

    networks: dict[str, NetworkRobustness]

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values, by network."""
        return {name: network.to_json() for name, network in self.networks.items()}

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write a JSON file for each network; return their paths.

        Raises:
            OSError: The folder cannot be written.
        """
        paths = []
        for name, network in self.networks.items():
            path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')}.json"
            write_json(path, network.to_json())
            paths.append(path)
        return paths

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        networks = list(self.networks.values())
        first = networks[0]
        table = Table("", title=f"{first.images:,} images, corrupted images from {first.source}")
        for name in self.networks:
            table.add_column(name, justify="right", overflow="fold")

        def row(name: str, figures: Iterable[Figures], figure: str, *, end: bool = False) -> None:
            shares = [f"{getattr(each, figure):.2%}" for each in figures]
            table.add_row(name, *shares, end_section=end)

        row("top-1, clean", [n.clean for n in networks], "top1")
        row("top-1, mean over corruptions", [n.mean for n in networks], "top1", end=True)
        kinds = list(dict.fromkeys(c.corruption for c in first.corrupted))
        severities = sorted({c.severity for c in first.corrupted})
        for kind in kinds:
            row(kind, [n.of(kind) for n in networks], "top1", end=kind == kinds[-1])
        for figure, title in (
            ("top1", "top-1"),
            ("reduction", "reduction"),
            ("keep", "keep ratio"),
        ):
            if figure != "top1":
                row(f"{title}, clean", [n.clean for n in networks], figure)
            for severity in severities:
                row(
                    f"{title}, severity {severity}",
                    [n.at(severity) for n in networks],
                    figure,
                    end=severity == severities[-1],
                )
        yield table


def evaluate_corrupted(
    networks: nn.Module | Mapping[str, nn.Module],
    images: Images,
    *,
    corruptions: Iterable[str] = tuple(CORRUPTIONS),
    severities: Iterable[int] = SEVERITIES,
    count: int | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    accelerator: Any = None,
    provenance: dict[str, Any] | None = None,
) -> Robustness:
    """Evaluate plain or dynamic networks on clean and on corrupted images.

    Each corrupted version is made once, and shown to all networks.

    Args:
        networks: One network, or several by name: images (B, C, H, W) to logits.
        images: Test images of 32x32 pixels; networks see them normalised by their mean and std.
        corruptions: Which, of `ftwt.data.corruptions.CORRUPTIONS`.
        severities: Which, of 1 to 5.
        count: Use so many of the images, as many of each class: always the same ones. None: all.
        seed: Of everything random in the corruptions.
        root: Folder of the published files of CIFAR-10-C, to read instead of corrupting here.
        device: Where the networks are; None: where the first one's parameters are.
        progress: Tell how far it is, on standard error.
        accelerator: An `accelerate.Accelerator` or `PartialState`: each of its processes, all given
            the same images, corrupts and shows its part of them; all return the whole.
        provenance: Kept in the results.

    Returns:
        Accuracy, executed reduction and keep ratio of each network; a plain one is named by its
        class.

    Raises:
        ValueError: An unknown corruption or severity, none at all, no network, a count out of
            range, images of another size, or files that are no part of CIFAR-10-C.
        FileNotFoundError: A published file is not there.
    """
    if isinstance(networks, nn.Module):
        networks = {type(networks).__name__: networks}
    if not networks:
        raise ValueError("no networks to evaluate; give at least one")
    kinds, levels = _distinct("corruptions", corruptions), _distinct("severities", severities)
    for kind in kinds:
        for level in levels:
            check_corruption(kind, level)
    labels = images.labels.cpu()
    files = None
    if root is not None:
        files = Published(root, labels=labels.numpy(), corruptions=kinds)
    places = _subset(images, count)
    count = len(places)
    if accelerator is not None:
        if count < accelerator.num_processes:
            raise ValueError(
                f"{count} images for {accelerator.num_processes} processes; take more images "
                "(--images) or fewer processes"
            )
        places = places[accelerator.process_index :: accelerator.num_processes]
    chosen = images.select(places)
    if device is None:
        device = device_of(next(iter(networks.values())))

    def figures(pictures: Images) -> dict[str, Figures]:
        batches = Batches(pictures, batch_size=BATCH, device=device) if len(pictures) else ()
        return {
            name: _figures(evaluate(network, batches, targets=False, accelerator=accelerator))
            for name, network in networks.items()
        }

    clean = figures(chosen)
    results: dict[str, list[Corrupted]] = {name: [] for name in networks}
    for kind, level in _announced(kinds, levels, results, progress=progress):
        if files is None:
            altered = corrupt(chosen, kind, severity=level, seed=seed)
        else:
            pixels = files.read(kind, severity=level, places=places.numpy())
            altered = replace(chosen, images=torch.from_numpy(pixels).to(chosen.images.device))
        for name, values in figures(altered).items():
            results[name].append(Corrupted(**vars(values), corruption=kind, severity=level))
    return Robustness(
        {
            name: NetworkRobustness(
                network=name,
                images=count,
                clean=clean[name],
                corrupted=tuple(results[name]),
                source=MADE if files is None else READ,
                provenance=provenance or {},
            )
            for name in networks
        }
    )


def _distinct(option: str, values: Iterable[Any]) -> list[Any]:
    found = list(dict.fromkeys(values))
    if not found:
        raise ValueError(f"{option}=(): give at least one")
    return found


def _subset(images: Images, count: int | None) -> torch.Tensor:
    """Choose the images, int64 (count,)."""
    if count is None or count == len(images):
        return torch.arange(len(images))
    most = len(images) - len(images.classes)
    if not 1 <= count <= most:
        raise ValueError(
            f"count={count} of {len(images):,} images (--images): give 1 to {most:,}, as many of "
            f"each class as can be, or none for all of them"
        )
    return balanced(images, count=count, seed=SUBSET_SEED)


def _figures(evaluation: Evaluation) -> Figures:
    units = evaluation.units
    return Figures(
        top1=evaluation.top1,
        reduction=evaluation.reduction,
        keep=fmean(unit.keep for unit in units) if units else 1.0,
    )


def _announced(
    kinds: Sequence[str],
    levels: Sequence[int],
    found: Mapping[str, list[Corrupted]],
    *,
    progress: bool,
) -> Iterator[tuple[str, int]]:
    """Yield each corruption with each severity; tell what was found after each corruption."""
    console = PlainConsole(stderr=True, quiet=not progress)
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    )
    with bar:
        task = bar.add_task("", total=len(kinds) * len(levels))
        for kind in kinds:
            for level in levels:
                bar.update(task, description=f"{kind} {level}")
                yield kind, level
                bar.advance(task)
            recent = [mean_of(list_[-len(levels) :]).top1 for list_ in found.values()]
            shares = "  ".join(f"{share:.1%}" for share in recent)
            console.print(f"{kind:<18} top-1 {shares}", highlight=False, soft_wrap=True)
