"""The command line: what was typed, to the verb that does it; its result, to who reads it."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import partial
from typing import Any

from .files.text import one_line
from .names import nearest
from .verbs import SUMMARIES, VERBS

# Each function imports what it needs: torch takes seconds, and where numpy is alone there is none.

SHARED = {"estimate", "train", "evaluate", "robustness", "models", "recipes"}
"""Verbs that many processes may share; the lists are told by the main one."""

PIPED_WIDTH = 160  # columns, where there is no terminal: a table's row is then one line


def main(arguments: list[str] | None = None) -> int:
    """Run the verb that the command line names.

    Args:
        arguments: Of the command line, without the program; None for the process's own.

    Returns:
        Exit status: 0, 1 after an error that was told, 130 after Ctrl-C. (Flags that do not exist,
        or values that do not fit them, exit with 2.)
    """
    for stream in (sys.stdout, sys.stderr):  # where "±" cannot be shown there is a "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    verb, rest = given[0], given[1:]
    warnings.formatwarning = _in_a_line
    try:
        if verb not in VERBS:
            raise ValueError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")
        if verb in SHARED:
            _show_once(parse(verb, rest)())
        elif (count := _started()) > 1:
            raise ValueError(f"it works in one process only; {count} were started: start one")
        else:
            _show(parse(verb, rest)())
    except BrokenPipeError:  # whoever reads (`head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        if os.environ.get("FTWT_TRACEBACK"):
            raise
        print(one_line(f"ftwt {verb}: {_explained(error)}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(one_line(f"ftwt {verb}: {str(stop) or 'interrupted'}"), file=sys.stderr)
        return 130
    return 0


def _in_a_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """How a warning is shown: without the place in our code that found it out."""
    return f"{one_line(f'warning: {message}')}\n"


def parse(verb: str, rest: list[str]) -> Callable[[], Any]:
    """Turn flags into a command; a recipe's flags have the recipe's values as defaults."""
    import tyro

    program, description = f"ftwt {verb}", None
    default: Any = tyro.MISSING_NONPROP
    if verb == "train" and not {"-h", "--help"} & set(rest[:1]):
        if not rest or rest[0].startswith("-"):
            raise ValueError(
                "the recipe comes first: ftwt train RECIPE [OPTIONS], such as "
                "cifar10-resnet20-short (`ftwt recipes` lists them)"
            )
        from . import recipes
        from .runs.run import begun_run
        from .verbs.training import TrainCommand

        recipe, *rest = rest
        begun = begun_run(recipe) if "--resume" in rest else None
        config = recipes.get(recipe) if begun is None else begun
        if config.prune is None:
            _refuse_gates(recipe, config.model, rest)
        if any(flag.split("=")[0].replace("_", "-") == "--twin-of" for flag in rest):
            config = config.without_budget()
        epochs = _value_of("--epochs", rest)
        if epochs.isdecimal() and int(epochs) > 0:
            config = config.of_epochs(int(epochs))
        program = f"{program} {recipe}"
        output = recipe if begun is not None else f"runs/{recipe.replace(':', '-')}"
        description = None if begun is not None else recipes.describe(recipe)
        default = TrainCommand(output=output, run=config)
    elif verb == "train":
        program += " RECIPE"
    read = partial(
        tyro.cli,
        VERBS[verb],
        prog=program,
        description=description,
        args=rest,
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.AvoidSubcommands,
            tyro.conf.FlagCreatePairsOff,
        ),
    )
    command = read(default=default)
    if hasattr(command, "data"):  # what no flag says of the images is as of the network's run
        from .networks.sources import own_images

        own = own_images(command.model, command.weights)
        if own and (other := _value_of("--dataset", rest)) and other != own.dataset:
            own = replace(own, data_root=None, validation=None)  # but prepared as the run's
        required = {f.name for f in fields(command) if f.default is f.default_factory is MISSING}
        given = {name: getattr(command, name) for name in required}
        command = command if own is None else read(default=VERBS[verb](**given, data=own))
    return command


def _value_of(wanted: str, flags: list[str]) -> str:
    """What a flag was given, as `--flag value` or `--flag=value`; empty if it was not."""
    for place, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name == wanted:
            return value if equals else "".join(flags[place + 1 : place + 2])
    return ""


def _refuse_gates(recipe: str, model: str, flags: list[str]) -> None:
    from .config import PruneConfig

    gates = {f.name for f in fields(PruneConfig)}
    for flag in flags:
        if flag.startswith("--") and flag[2:].split("=")[0].replace("-", "_") in gates:
            raise ValueError(
                f"{recipe} trains the dense network, without gates, so it has no {flag}; "
                f"`ftwt train {model} {flag} ...` prunes that network"
            )


def _show_once(result: Any) -> None:
    """Print what all processes of a run made: by one of them alone, and part."""
    from .processes import leave, processes

    if processes().is_main_process:
        _show(result)
    leave()


def _show(result: Any) -> None:
    """Print a verb's result, JSON values or a list of things to read."""
    if isinstance(result, dict):
        print(json.dumps(result, indent=2))
    else:
        from .files.console import PlainConsole

        console = PlainConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)
        for part in result:
            console.print(part, highlight=False)
    sys.stdout.flush()


def _started() -> int:
    """How many processes were started together: by torchrun, or by MPI."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return max(
        int(os.environ[name]) if os.environ.get(name, "").isdecimal() else 1 for name in names
    )


def _explained(error: Exception) -> str:
    """Say what an error means: another process that failed, or a package that is not there."""
    if isinstance(error, ModuleNotFoundError) and error.name and "install" not in str(error):
        return (
            f"{error.name} is not installed, which this needs: install ftwt with its dependencies; "
            "to run .ftwt files, numpy, pillow, rich and tyro are enough"
        )
    if "accelerate" not in sys.modules:
        return str(error)
    from .processes import explained

    return explained(error)


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {summary}" for verb, summary in SUMMARIES.items())
    return (
        "usage: ftwt VERB ...\n\nPer-input pruning for convolutional networks.\n\n"
        f"{verbs}\n\n`ftwt VERB --help` lists a verb's options. Examples:\n\n"
        "  ftwt demo\n"
        "  ftwt prune cifar10-resnet20 --reduction 0.3\n"
        "  ftwt estimate cifar10-resnet20 --reduction 0.5\n"
        "  ftwt train cifar10-resnet20-short --target-reduction 0.5\n"
        "  ftwt evaluate runs/cifar10-resnet20-short\n"
        "  ftwt compile runs/cifar10-resnet20-short -o net.ftwt\n"
        "  ftwt run net.ftwt photo.jpg\n"
        "  ftwt export runs/cifar10-resnet20-short -o net.onnx\n"
        "  ftwt bench cifar10-resnet56 --keep 0.5\n"
    )
