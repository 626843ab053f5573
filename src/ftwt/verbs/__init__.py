"""What the command line can do: one class for each verb, its fields the flags; no logic."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

_HOMES = {  # verb -> its module and its class
    "demo": "prune.DemoCommand",
    "prune": "prune.PruneCommand",
    "estimate": "training.EstimateCommand",
    "train": "training.TrainCommand",
    "sweep": "sweep.SweepCommand",
    "evaluate": "training.EvaluateCommand",
    "robustness": "robustness.RobustnessCommand",
    "compile": "engine.CompileCommand",
    "export": "export.ExportCommand",
    "run": "run.RunCommand",
    "bench": "engine.BenchCommand",
    "report": "report.ReportCommand",
    "models": "training.ModelsCommand",
    "recipes": "training.RecipesCommand",
}
SUMMARIES = {  # verb -> the first line of its help
    "demo": "Prune a trained ResNet-20 on the images in the package: what it costs, what it saves.",
    "prune": "Make a trained network cheaper in minutes, without labels: fixed masks, gates, "
    "second looks.",
    "estimate": "Say what each r would save, from one pass over images, before any training.",
    "train": "Train a network, dense or pruned. Every setting of the recipe is a flag.",
    "sweep": "Train many networks, some at a time, until each has its result.",
    "evaluate": "Evaluate a saved network: accuracy, executed MACs, how dynamic its masks are.",
    "robustness": "Evaluate networks on CIFAR-10-C: accuracy and MACs under 15 corruptions.",
    "compile": "Compile a trained network to one file, which runs without torch.",
    "export": "Export a trained network, gates and all, to ONNX or to torch.export's format.",
    "run": "Show images to a network: its guesses, and what each image took.",
    "bench": "Time a network beside PyTorch, ONNX Runtime and OpenVINO, all in one run.",
    "report": "Turn result files into a page to send to a colleague, and figures for papers.",
    "models": "List the networks that have a name, and what the trained ones achieve.",
    "recipes": "List the recipes: the baselines, ours, and one for each published row.",
}


class _Verbs(Mapping[str, Any]):
    """Verb -> its class. A class is imported when it is asked for, since most import torch."""

    def __getitem__(self, verb: str) -> Any:
        module, _, name = _HOMES[verb].partition(".")
        return getattr(import_module(f".{module}", __name__), name)

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


VERBS: Mapping[str, Any] = _Verbs()
