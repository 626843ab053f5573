"""Flags that several verbs have. Where a file is run, torch is not there: what needs it is late."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from ..config import DataConfig
    from ..networks.sources import Source

Json = Annotated[
    bool, tyro.conf.arg(name="json", help="Print JSON, and nothing else, to standard output.")
]
Network = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(
        metavar="MODEL",
        help="A model's name (`ftwt models`), MODULE:FUNCTION of your own, the folder of a run or "
        "of save_pretrained, or a repository OWNER/NAME on the Hugging Face Hub.",
    ),
]
Weights = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="FILE|FOLDER",
        help="Weights for a MODEL by name: a state dict (.pth, .pt, .safetensors), or a folder.",
    ),
]


def named(model: str, weights: str | None) -> Source:
    """What MODEL and --weights name: trained weights, where none are given."""
    from ..networks.sources import resolve

    return resolve(model, weights or "pretrained")


@dataclass(frozen=True)
class Prepared:
    """How images are prepared, for verbs that see no dataset."""

    size: int | None = None
    """Side of the images that the network takes, in pixels; None: as is known of it."""
    mean: tuple[float, float, float] | None = None
    """Mean that the weights expect, per channel, of pixels in [0, 1]; None: as is known."""
    std: tuple[float, float, float] | None = None
    """Standard deviation that the weights expect, likewise."""

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean={self.mean} and std={self.std} belong together; give both")

    @property
    def normal(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation, if they are given."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    def data(self, model: str, weights: str | None) -> DataConfig:
        """The settings of a network's own images, with what is given here."""
        from ..config import DataConfig
        from ..networks.sources import own_images

        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(own_images(model, weights) or DataConfig(), **given)
