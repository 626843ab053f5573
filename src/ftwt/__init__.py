"""Per-input pruning for convolutional networks: compute only the filters that an input needs.

Public names are imported when they are first used, so that `ftwt.runtime` needs numpy alone.
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

# The Hugging Face library adds the user's software to its requests, and asks its server for more to
# add, unless told; it reads this when it is first imported. To be counted after all, set it to 0.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from . import data as data
    from . import models as models
    from . import recipes as recipes
    from . import report as report
    from . import runtime as runtime
    from . import shipped as shipped
    from .bench import Benchmark as Benchmark
    from .bench import bench as bench
    from .checkpoint import from_pretrained as from_pretrained
    from .checkpoint import push_to_hub as push_to_hub
    from .checkpoint import save_pretrained as save_pretrained
    from .compile import compile as compile
    from .config import DataConfig as DataConfig
    from .config import PruneConfig as PruneConfig
    from .config import RunConfig as RunConfig
    from .config import TrainConfig as TrainConfig
    from .convert import convert as convert
    from .data.corruptions import corrupt as corrupt
    from .dynamic import DynamicModel as DynamicModel
    from .estimate import Allocation as Allocation
    from .estimate import Estimate as Estimate
    from .estimate import estimate as estimate
    from .evaluate import Evaluation as Evaluation
    from .evaluate import evaluate as evaluate
    from .export import Exported as Exported
    from .export import export as export
    from .macs import MacCount as MacCount
    from .macs import count_macs as count_macs
    from .method import mask_loss as mask_loss
    from .processes import shard as shard
    from .record import record as record
    from .recording import Recording as Recording
    from .robustness import Robustness as Robustness
    from .robustness import evaluate_corrupted as evaluate_corrupted
    from .run import run as run
    from .training.budget import Calibration as Calibration
    from .training.loop import TrainResult as TrainResult
    from .training.loop import train as train

_MODULES = ("data", "models", "recipes", "report", "runtime", "shipped")
_HOMES = {  # name -> the module that it comes from, as above
    "Benchmark": "bench",
    "bench": "bench",
    "Calibration": "training.budget",
    "from_pretrained": "checkpoint",
    "push_to_hub": "checkpoint",
    "save_pretrained": "checkpoint",
    "compile": "compile",
    "DataConfig": "config",
    "PruneConfig": "config",
    "RunConfig": "config",
    "TrainConfig": "config",
    "convert": "convert",
    "corrupt": "data.corruptions",
    "DynamicModel": "dynamic",
    "Allocation": "estimate",
    "Estimate": "estimate",
    "estimate": "estimate",
    "Evaluation": "evaluate",
    "evaluate": "evaluate",
    "Exported": "export",
    "export": "export",
    "MacCount": "macs",
    "count_macs": "macs",
    "mask_loss": "method",
    "shard": "processes",
    "record": "record",
    "Recording": "recording",
    "Robustness": "robustness",
    "evaluate_corrupted": "robustness",
    "run": "run",
    "TrainResult": "training.loop",
    "train": "training.loop",
}


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        home = name if name in _MODULES else _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = import_module(f".{home}", __name__)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{__name__}.{name} needs {error.name}, which is not installed: install {__name__} "
                f"with its dependencies, or use {__name__}.runtime, which needs numpy alone",
                name=error.name,
            ) from error
        return module if name in _MODULES else getattr(module, name)

    def __setattr__(self, name: str, value: object) -> None:
        # Whoever first imports the module `ftwt.evaluate` makes Python set it as the attribute
        # `evaluate` of this package, whose `evaluate` is the function.
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted([*_MODULES, *_HOMES])


sys.modules[__name__].__class__ = _Package
