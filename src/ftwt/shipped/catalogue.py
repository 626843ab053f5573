"""What networks there are, where they lie, and what they achieve.

A network that comes with ftwt is the folder of a finished run, made small: `run.json` (its figures
are those of the weights as they are stored, the run's own stand beside them), `model/` for
`from_pretrained`, and `MODEL_CARD.md`, written from `run.json`. `tools/ship.py` makes such folders.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from ..files.json import read_json
from ..names import nearest

FOLDER = Path(__file__).parent / "networks"
RUN, MODEL = "run.json", "model"  # in the folder of a network, as in that of a run
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # in a folder of `save_pretrained`

Kind = Literal["dense", "dynamic", "static"]


@dataclass(frozen=True)
class Name:
    """A network's name, read: `cifar10-resnet20-dynamic-50`.

    Args:
        model: The architecture's name in `ftwt.models`; alone, that of its dense network.
        kind: `dense`, `dynamic` (with gates) or `static` (a twin: masks that never change).
        percent: The reduction that was asked for, in percent of the dense network's MACs; of a
            static twin, that of its dynamic network; None for a dense network.
    """

    model: str
    kind: Kind = "dense"
    percent: int | None = None

    @classmethod
    def read(cls, name: str) -> Self:
        """Take a name apart."""
        found = re.fullmatch(r"(.+)-(dynamic|static)-([1-9]\d?)", name)
        if found is None:
            return cls(name)
        (kind,) = (kind for kind in get_args(Kind) if kind == found[2])
        return cls(found[1], kind, int(found[3]))

    def __str__(self) -> str:
        return self.model if self.kind == "dense" else f"{self.model}-{self.kind}-{self.percent}"


def names() -> list[str]:
    """List the networks that come with ftwt: dense, dynamic and static."""
    return sorted(
        path.name
        for path in FOLDER.glob("[!.]*")  # what begins with a dot is being written
        if (path / MODEL / CONFIG).is_file()
    )


def folder(name: str) -> Path:
    """Return the folder of a network.

    Raises:
        ValueError: There is no such network; the message suggests the nearest.
    """
    if name not in names():
        raise ValueError(f"no network {name!r} comes with ftwt; {nearest(name, names())}")
    return FOLDER / name


def result(name: str) -> dict[str, Any]:
    """Read what a network achieved, and where it comes from: its `run.json`.

    `test` and `validation` are of the weights as they are stored; `shipped` tells how they are, and
    holds the figures of the run itself.

    Raises:
        ValueError: There is no such network; the message suggests the nearest.
    """
    return read_json(folder(name) / RUN)


def find(source: str | os.PathLike[str]) -> Path | None:
    """Return the folder of the network that comes with ftwt, if that is what a source names.

    Args:
        source: A name; anything else, a path object too, is no name.

    Raises:
        ValueError: A folder here has that name, too.
    """
    if not isinstance(source, str) or source not in names():
        return None
    refuse_folder(source)
    return FOLDER / source


def refuse_folder(name: str) -> None:
    """Refuse a network's name that is a folder of the working directory as well.

    Raises:
        ValueError: It is; neither shall hide the other.
    """
    if Path(name).is_dir():
        raise ValueError(
            f"{name!r} is the name of a network and a folder here; write './{name}' for the "
            "folder; for the network, rename the folder or work in another one"
        )
