"""Per-input pruning for convolutional networks: compute only the filters that an input needs.

Public names are imported when they are first used, so that `ftwt.runtime` needs numpy alone.
"""

import os
from importlib import import_module
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
    from .budget.calibration import Calibration as Calibration
    from .budget.calibration import calibrate as calibrate
    from .budget.estimate import Allocation as Allocation
    from .budget.estimate import Estimate as Estimate
    from .budget.estimate import estimate as estimate
    from .config import DataConfig as DataConfig
    from .config import PruneConfig as PruneConfig
    from .config import RunConfig as RunConfig
    from .config import TrainConfig as TrainConfig
    from .contest.bench import bench as bench
    from .data.corruptions import corrupt as corrupt
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.record import record as record
    from .evaluation.robustness import Robustness as Robustness
    from .evaluation.robustness import evaluate_corrupted as evaluate_corrupted
    from .exporting.export import Exported as Exported
    from .exporting.export import export as export
    from .files.pictures import Preprocessing as Preprocessing
    from .fitting.columns import rank_filters as rank_filters
    from .fitting.first_order import across_units as across_units
    from .fitting.first_order import first_order as first_order
    from .fitting.masks import Ranking as Ranking
    from .fitting.masks import fixed_masks as fixed_masks
    from .fitting.predictors import FittedPredictors as FittedPredictors
    from .fitting.predictors import fit_predictors as fit_predictors
    from .fitting.repair import Repair as Repair
    from .fitting.repair import repair as repair
    from .fitting.second_look import SecondLookFit as SecondLookFit
    from .fitting.second_look import second_look as second_look
    from .lowering.compile import compile as compile
    from .lowering.quantize import QuantizedLayers as QuantizedLayers
    from .lowering.quantize import quantized_layers as quantized_layers
    from .networks.pretrained import from_pretrained as from_pretrained
    from .networks.pretrained import push_to_hub as push_to_hub
    from .networks.pretrained import save_pretrained as save_pretrained
    from .processes import shard as shard
    from .pruning.convert import convert as convert
    from .pruning.dynamic import DynamicModel as DynamicModel
    from .pruning.macs import MacCount as MacCount
    from .pruning.macs import count_macs as count_macs
    from .pruning.method import mask_loss as mask_loss
    from .pruning.second_look import SecondLook as SecondLook
    from .records.benchmark import Benchmark as Benchmark
    from .records.evaluation import Evaluation as Evaluation
    from .records.recording import Recording as Recording
    from .runs.prune import Pruned as Pruned
    from .runs.prune import prune as prune
    from .runs.run import run as run
    from .training.loop import TrainResult as TrainResult
    from .training.loop import train as train

_MODULES = ("data", "models", "recipes", "report", "runtime", "shipped")
_HOMES = {  # name -> the module that it comes from, as above
    "Calibration": "budget.calibration",
    "calibrate": "budget.calibration",
    "Allocation": "budget.estimate",
    "Estimate": "budget.estimate",
    "estimate": "budget.estimate",
    "DataConfig": "config",
    "PruneConfig": "config",
    "RunConfig": "config",
    "TrainConfig": "config",
    "Benchmark": "records.benchmark",
    "bench": "contest.bench",
    "corrupt": "data.corruptions",
    "Evaluation": "records.evaluation",
    "evaluate": "evaluation.evaluate",
    "record": "evaluation.record",
    "Robustness": "evaluation.robustness",
    "evaluate_corrupted": "evaluation.robustness",
    "Exported": "exporting.export",
    "export": "exporting.export",
    "Preprocessing": "files.pictures",
    "rank_filters": "fitting.columns",
    "across_units": "fitting.first_order",
    "first_order": "fitting.first_order",
    "Ranking": "fitting.masks",
    "fixed_masks": "fitting.masks",
    "FittedPredictors": "fitting.predictors",
    "fit_predictors": "fitting.predictors",
    "Repair": "fitting.repair",
    "repair": "fitting.repair",
    "SecondLookFit": "fitting.second_look",
    "second_look": "fitting.second_look",
    "compile": "lowering.compile",
    "QuantizedLayers": "lowering.quantize",
    "quantized_layers": "lowering.quantize",
    "from_pretrained": "networks.pretrained",
    "push_to_hub": "networks.pretrained",
    "save_pretrained": "networks.pretrained",
    "shard": "processes",
    "convert": "pruning.convert",
    "DynamicModel": "pruning.dynamic",
    "MacCount": "pruning.macs",
    "count_macs": "pruning.macs",
    "mask_loss": "pruning.method",
    "SecondLook": "pruning.second_look",
    "Recording": "records.recording",
    "Pruned": "runs.prune",
    "prune": "runs.prune",
    "run": "runs.run",
    "TrainResult": "training.loop",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
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


def __dir__() -> list[str]:
    return sorted([*_MODULES, *_HOMES])
