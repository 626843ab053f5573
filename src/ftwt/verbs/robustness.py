"""The verb that shows corrupted images to networks."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from .. import data, shipped
from ..config import DataConfig
from ..data.corruptions import CORRUPTIONS, SEVERITIES
from ..evaluation.robustness import Robustness, evaluate_corrupted
from ..files.provenance import Start, provenance
from ..networks.sources import Source, own_images
from ..processes import processes
from .options import Json, Weights, named


@dataclass(frozen=True)
class RobustnessCommand:
    """Evaluate networks on CIFAR-10-C: accuracy and MACs under 15 corruptions.

    All networks see the same corrupted images, which are made once.
    """

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL ...")]
    """Names of models (`ftwt models`), folders of runs, or repositories OWNER/NAME on the
    Hugging Face Hub."""
    weights: Weights = None
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """Which corruptions."""
    severities: tuple[int, ...] = SEVERITIES
    """Which severities."""
    images: int | None = None
    """Use so many test images, as many of each class, always the same; None: all."""
    corruptions_root: str | None = None
    """Folder with the published files of CIFAR-10-C, to be used instead of images made here."""
    seed: int = 0
    """Of everything random in the corruptions."""
    output: str | None = None
    """Folder to write a file of figures to, as JSON, for each network."""
    as_json: Json = False
    dataset: str | None = None
    """The dataset whose test images are corrupted: cifar10, cifar100 or cifar10-embedded; None: the
    runs' own, cifar10 where none are of a run."""
    data_root: str | None = None
    """Folder that holds (or will hold) the dataset's files; None: the runs' own, or ./data."""

    def __call__(self) -> Any:
        """Evaluate."""
        began = Start()
        if self.weights is not None and len(self.models) != 1:
            raise ValueError(f"--weights {self.weights} are of one model: name that one alone")
        short = name_networks(self.models)
        sources = {name: named(model, self.weights) for name, model in short.items()}
        own = self._own_images()
        state = processes()
        with state.local_main_process_first():  # which downloads, if need be
            test = data.load(own.dataset, own.data_root, train=False, download=True)
        if own.mean is not None and own.std is not None:
            test = replace(test, mean=own.mean, std=own.std)
        robustness = evaluate_corrupted(
            {name: source.load(passes=True) for name, source in sources.items()},
            test.to(state.device),
            corruptions=self.corruptions,
            severities=self.severities,
            count=self.images,
            seed=self.seed,
            root=self.corruptions_root,
            device=state.device,
            progress=state.is_main_process,
            accelerator=state,
        )
        config = replace(  # without this machine's folders
            self,
            models=tuple(map(_relative, self.models)),
            dataset=own.dataset,
            data_root=None,
            corruptions_root=None,
            output=None,
        )
        origin = provenance(config=config, seed=self.seed, since=began)
        result = Robustness(
            {
                name: replace(robustness.networks[name], **_origin(source), provenance=origin)
                for name, source in sources.items()
            }
        )
        if self.output and state.is_main_process:
            result.save(self.output)
        return result.to_json() if self.as_json else [result]

    def _own_images(self) -> DataConfig:
        """The images of the runs, with what flags say; those of all networks are the same.

        Raises:
            ValueError: Two runs are of other datasets, or prepare images in another way.
        """
        own = {
            name: own_images(name, self.weights)
            or (DataConfig() if name.startswith("cifar10-") else None)
            for name in self.models
        }
        if self.dataset is not None:  # other images than a run's, but prepared as the run's
            root = None
            own = {name: c and replace(c, dataset=self.dataset) for name, c in own.items()}  # type: ignore[arg-type]
        else:
            root = next((c.data_root for c in own.values() if c is not None), None)
        kinds = {(c.dataset, c.mean, c.std) for c in own.values() if c is not None}
        if len(kinds) > 1:
            told = ", ".join(f"{name}: {c.dataset}" for name, c in own.items() if c is not None)
            raise ValueError(
                f"these networks are of different images, or prepare them in another way ({told}); "
                "show images to those of one kind at a time"
            )
        dataset, mean, std = kinds.pop() if kinds else (self.dataset or "cifar10", None, None)
        if dataset == "folder":
            raise ValueError(
                "corruptions are of CIFAR's test images; for a network of images that lie in a "
                "folder, name --dataset cifar10 or cifar100"
            )
        return DataConfig(dataset=dataset, data_root=self.data_root or root, mean=mean, std=std)  # type: ignore[arg-type]


def name_networks(sources: tuple[str, ...]) -> dict[str, str]:
    """Give each network a short name of its own: a run's folder alone, where that is enough.

    Raises:
        ValueError: A network is named twice, or none is.
    """
    if not sources:
        raise ValueError("no networks; name at least one, such as cifar10-resnet20 or runs/NAME")
    short = [os.path.basename(os.path.normpath(source)) for source in sources]
    names = [
        name if short.count(name) == 1 else _relative(source).replace(os.sep, "-")
        for name, source in zip(short, sources, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is named twice; name each network once")
    return dict(zip(names, sources, strict=True))


def _origin(source: Source) -> dict[str, Any]:
    """A network's architecture, and the run or repository it is from, if it is from one."""
    if source.folder is None or source.given in shipped.names():
        return {"network": source.given, "run": None}
    return {"network": source.model, "run": _relative(source.given)}


def _relative(source: str) -> str:
    return os.path.relpath(source) if os.path.isabs(source) else os.path.normpath(source)
