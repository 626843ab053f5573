"""What a string means as a network, found out once: a `Source`, which every verb takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import models, shipped
from ..config import DataConfig
from ..files.json import read_json
from ..files.pictures import SUFFIX, Preprocessing
from ..files.tensors import refusing
from ..graph.trace import evaluating
from ..models.states import ADDRESS, STATES, names_state
from ..names import is_own, nearest
from ..processes import processes
from ..pruning.dynamic import DynamicModel
from ..pruning.second_look import SecondLook
from ..records.folder import METRICS, MODEL, PRUNED, RESULT
from .allowed import check_values
from .inputs import known
from .pretrained import PLACES, find_saved, from_pretrained

PLAIN = DataConfig()


@dataclass(frozen=True)
class Source:
    """A network as a string names it: architecture, weights, preparation of images, classes.

    Args:
        given: The string; where it names an architecture alone, and weights were given, these.
        model: Its architecture's name in `ftwt.models`.
        weights: Without a folder: `pretrained`, a file of a state dict, or None for random ones.
        folder: Of `save_pretrained`, if its weights are in one.
        saved: What is said there.
    """

    given: str
    model: str
    weights: str | None = None
    folder: Path | None = None
    saved: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def load(self, *, passes: bool = False) -> nn.Module:
        """Load or build it, onto this process's device; from a file in eval mode.

        Args:
            passes: It may be a second look, which is two or three networks.

        Raises:
            ValueError: It has no weights, they are of another network, or it is a second look.
        """
        if self.folder is not None:
            named = self.saved.get("model") == self.model and not is_own(self.model)
            network = from_pretrained(self.folder, model=None if named else self.model)
        elif self.weights in (None, "pretrained"):
            network = models.create(self.model, pretrained=self.weights is not None)
        else:
            network = models.create(self.model, weights=str(self.weights)).eval()
            check_values(network, str(self.weights))
        if isinstance(network, SecondLook) and not passes:
            count, cure = len(network.passes), "let it return one of them"
            if self.folder is not None:
                places = (str(self.folder / place) for place in PLACES[:count])
                cure = f"name one of them: {', '.join(places)}"
            raise ValueError(f"{self.given} holds a second look, which is {count} networks; {cure}")
        return network.to(processes().device)

    def load_dense(self, **options: Any) -> nn.Module:
        """Load a dense network.

        Args:
            options: As of `load_start`.

        Raises:
            ValueError: As of `load_start`; or it is pruned.
        """
        network = self.load_start(**options)
        if isinstance(network, DynamicModel):
            raise ValueError(f"{self.given} holds a pruned network; name the run of a dense one")
        return network

    @property
    def random(self) -> bool:
        """Whether its weights are random."""
        return self.folder is None and self.weights is None

    def load_start(
        self, *, classes: int | None = None, new_head: bool = False, data: DataConfig = PLAIN
    ) -> nn.Module:
        """Load a network, dense or pruned, for training to begin with.

        Args:
            classes: How many outputs it must have; if not given, as many as it has.
            new_head: Where the weights are of another number, begin with a new classifier.
            data: The images, of which its own may not tell the size.

        Raises:
            ValueError: As of `load`; or it is of another number of classes.
        """
        sized: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        random = self.random
        network = models.create(self.model, **sized) if random else self.load()
        if classes is not None and (outputs := count_outputs(network, self.shape(data))) != classes:
            if isinstance(network, DynamicModel):
                raise ValueError(
                    f"{self.given} holds a pruned network of {outputs} classes, the images are of "
                    f"{classes}; train a dense network on them first"
                )
            fresh = network if random else models.create(self.model, **{**self.arguments, **sized})
            if (rebuilt := count_outputs(fresh, self.shape(data))) != classes:
                raise ValueError(
                    f"{self.model} builds networks of {rebuilt} classes alone, the images are of "
                    f"{classes}; let it take num_classes"
                )
            if not new_head:
                weights = self.given if self.folder else self.weights
                raise ValueError(
                    f"the weights {weights!r} of {self.model} are of {outputs} classes, the images "
                    f"of {classes}; give weights of these classes, or begin with a new classifier "
                    "(--new-head, new_head=True)"
                )
            network = _with_new_head(network, fresh)
        return network.to(processes().device)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `ftwt.models.create` that it was saved with."""
        ours = self.saved.get("model") == self.model
        return dict(self.saved["arguments"]) if ours else {}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """What its outputs are called, as far as that is known."""
        found = self.saved.get("classes")
        found = [n for n in found if isinstance(n, str)] if isinstance(found, list) else []
        return tuple(found) or known(self.model)[1]

    @cached_property
    def stated(self) -> Preprocessing | None:
        """How images are prepared, as it was saved with it."""
        if (found := self.saved.get("preprocessing")) is None:
            return None
        with refusing(str(self.folder), "was saved with a preparation that makes no sense"):
            return Preprocessing.from_json(found)

    def prepare(self, data: DataConfig = PLAIN) -> Preprocessing | None:
        """How images are prepared for it: as the settings say, it was saved with, or is known.

        Returns:
            The preparation; None if nothing says it, or the network takes no such images.
        """
        how = self.stated or known(self.model)[0]
        shape = self.saved.get("input_shape")
        if shape and (len(shape) != 3 or shape[0] != 3):
            return None
        side = shape[-1] if shape else data.size
        if how is None:
            if side is None or data.mean is None or data.std is None:
                return None
            return Preprocessing(side, side, data.mean, data.std)
        side = side or how.crop
        if side != how.crop:
            how = replace(how, resize=round(how.resize * side / how.crop), crop=side)
        if data.mean is not None and data.std is not None:
            how = replace(how, mean=data.mean, std=data.std)
        return how

    @property
    def unprepared(self) -> str:
        """What to say where nothing says how images are prepared for it."""
        return (
            f"nothing says how images are prepared for {self.model}; give size, mean and std, such "
            "as --size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 (ImageNet's), or save "
            "it with preprocessing= of ftwt.save_pretrained"
        )

    def shape(self, data: DataConfig = PLAIN) -> tuple[int, ...]:
        """The shape of one input, (C, H, W).

        Raises:
            ValueError: Nothing says it, or the settings say another one.
        """
        if self.saved.get("input_shape"):
            shape = tuple(self.saved["input_shape"])
            if data.size not in (None, shape[-1]):
                raise ValueError(f"size={data.size}: {self.given} is for inputs of {shape}")
            return shape
        how = self.prepare(data)
        side = data.size if how is None else how.crop
        if side is None:
            raise ValueError(self.unprepared)
        return 3, side, side

    def result(self) -> dict[str, Any]:
        """What its run found on test images; nothing if it is of no run."""
        path = None if self.folder is None else self.folder.parent / RESULT
        inside = path is not None and self.folder is not None and self.folder.name == MODEL
        return read_json(path)["test"] if inside and path is not None and path.is_file() else {}


def resolve(source: str, weights: str | None = "pretrained") -> Source:
    """Find out what a string means as a network; no weights are read.

    Args:
        source: A name of `ftwt.models`, `module:function` of your own among them, or of a network
            that comes with ftwt; the folder of a run or of `save_pretrained`; or a repository on
            the Hugging Face Hub, `owner/name`.
        weights: Of an architecture by name: `pretrained`, None for random ones, the file of a state
            dict, or its address with its checksum, or what else `source` may be.

    Raises:
        ValueError: It is none of these (the message suggests the nearest name), a name and a
            folder, or code of your own that nobody but you may name.
        FileNotFoundError: There is no network in that folder or repository.
    """
    suffix = Path(source).suffix
    if suffix == SUFFIX:
        raise ValueError(
            f"{source} is compiled: `ftwt run` and ftwt.runtime.load take it; give the network "
            "that it was compiled from"
        )
    if ADDRESS.match(source) or (suffix in STATES and ":" not in source):
        raise ValueError(
            f"{source} holds weights, but not what computes with them; write MODEL --weights "
            f"{source}, with a name of `ftwt models` or MODULE:FUNCTION for MODEL"
        )
    if _is_architecture(source):
        if weights in (None, "pretrained") or names_state(str(weights)):
            return Source(source, source, weights)
        folder, saved = find_saved(_folder_of(str(weights)))
        return Source(str(weights), source, folder=folder, saved=saved)
    if weights not in (None, "pretrained"):
        raise ValueError(
            f"{source} has its own weights; --weights are for an architecture by name: "
            f"MODEL --weights {weights}"
        )
    folder, saved = find_saved(_folder_of(source))
    model = saved.get("model")
    if not isinstance(model, str):
        raise ValueError(
            f"{source} was saved without the name of its architecture; write MODULE:FUNCTION "
            f"--weights {source}, where FUNCTION() in MODULE.py builds it"
        )
    if is_own(model):
        raise ValueError(
            f"{source} is of {model}, and no file may choose code that runs here; if you trust "
            f"that code, write `{model} --weights {source}`"
        )
    return Source(source, model, folder=folder, saved=saved)


def own_images(source: str, weights: str | None = None) -> DataConfig | None:
    """The images of a run, which its network is shown where no others are named.

    Args:
        source: As of `resolve`; what is no folder of a run has no images of its own, but CIFAR-100
            for networks that are named for it.
        weights: Likewise.

    Raises:
        ValueError: The run's file says no such thing.
    """
    folder = Path(weights or source)
    if folder.name == MODEL:
        folder = folder.parent
    for path in (folder / RESULT, folder / PRUNED):
        if path.is_file():
            with refusing(path, "does not say which images it is of"):
                found = read_json(path)
                config = (found if path.name == RESULT else found["provenance"]).get("config")
                return None if config is None else DataConfig.from_json(config["data"])
    return DataConfig(dataset="cifar100") if source.startswith("cifar100-") else None


def count_outputs(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the classes that a network tells apart, of images (C, H, W)."""
    shape = network.input_shape if isinstance(network, DynamicModel) else shape
    like = next(network.parameters())
    with evaluating(network), torch.inference_mode():
        return network(torch.zeros(1, *shape, dtype=like.dtype, device=like.device)).shape[1]


def _with_new_head(trained: nn.Module, fresh: nn.Module) -> nn.Module:
    """Take all of a trained network's weights that fit: the classifier's do not."""
    values, state = trained.state_dict(), fresh.state_dict()
    fits = {k: v.cpu() for k, v in values.items() if k in state and state[k].shape == v.shape}
    fresh.load_state_dict(state | fits)
    return fresh


def _is_architecture(source: str) -> bool:
    """Whether a source is a name of `ftwt.models`, so that its weights are a matter of their own.

    Raises:
        ValueError: It is no name and no place (the message suggests the nearest name), or a name
            and a folder.
    """
    if ":" in source:
        return True
    known = list(dict.fromkeys([*shipped.names(), *models.names()]))
    if source in known:
        shipped.refuse_folder(source)
    elif not Path(source).exists() and "/" not in source:
        raise ValueError(f"no model or folder {source!r}; {nearest(source, known)}")
    return source in models.names()


def _folder_of(source: str) -> str | Path:
    """Return the folder of a named network, or that in a run's folder, or the source itself.

    Raises:
        ValueError: The run is not finished, or the source is a name and a folder.
    """
    if (found := shipped.find(source)) is not None:
        return found / shipped.MODEL
    inside = Path(source) / MODEL
    if inside.is_dir():
        return inside
    if (Path(source) / METRICS).exists():
        raise ValueError(f"{source} holds a run that is not finished; go on with it (--resume)")
    return source
