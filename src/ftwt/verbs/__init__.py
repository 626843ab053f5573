"""What the command line can do: one class for each verb, its fields the flags; no logic."""

from typing import Any

from .engine import BenchCommand, CompileCommand, RunCommand
from .export import ExportCommand
from .prune import DemoCommand, PruneCommand
from .report import ReportCommand
from .robustness import RobustnessCommand
from .training import (
    EstimateCommand,
    EvaluateCommand,
    ModelsCommand,
    RecipesCommand,
    TrainCommand,
)

VERBS: dict[str, Any] = {
    "demo": DemoCommand,
    "prune": PruneCommand,
    "estimate": EstimateCommand,
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "robustness": RobustnessCommand,
    "compile": CompileCommand,
    "export": ExportCommand,
    "run": RunCommand,
    "bench": BenchCommand,
    "report": ReportCommand,
    "models": ModelsCommand,
    "recipes": RecipesCommand,
}
