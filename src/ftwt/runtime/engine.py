"""The engine: runs a program on numpy arrays or torch tensors, and says what each sample took."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import reference
from .check import check
from .constants import read_constants
from .file import save
from .program import PREPROCESSING, Program

Kind = Literal["native", "reference"]
MAX_THREADS = 256


@dataclass(frozen=True, eq=False, repr=False)
class Stats:
    """What a batch took, sample by sample.

    Args:
        keep: (B,) share of filters that were computed, mean over the gates; 1 without gates.
            Filters that lowering removed for good count as not computed.
        executed_macs: (B,) int64 multiply-accumulates, predictors included.
        reduction: (B,) share of the dense network's MACs that was saved.
        masks: Unit -> (B, C) bool, the masks that were applied.
        macs: (B, operations) int64, in the order of `Program.operations`.
    """

    keep: np.ndarray
    executed_macs: np.ndarray
    reduction: np.ndarray
    masks: dict[str, np.ndarray]
    macs: np.ndarray

    def __repr__(self) -> str:
        return (
            f"Stats({len(self.keep)} samples: keep {self.keep.mean():.3f}, executed MACs "
            f"{self.executed_macs.mean():.4g}, reduction {self.reduction.mean():.1%} on average)"
        )


class Engine:
    """A program ready to run. Threads may share an engine; the native one runs them in turn.

    Args:
        program: From `ftwt.compile`, `load`, or made by hand; it is checked first.
        engine: `native` is the fast one; `reference` is plain numpy, slow and obviously right.
        threads: How many threads a run of the native engine uses.
        isa: Instruction set of the native engine: `amx`, `avx512`, `avx2` or `portable`; None for
            the best that this machine has. For float32, `amx` is `avx512`.

    Attributes:
        program: What it runs.
        kind: `native` or `reference`.
        threads: As given.
        isa: The instruction set in use; None for the reference engine.

    Raises:
        ValueError: The program is not valid, or an option is none of its values.
        RuntimeError: The native engine was not built.
    """

    def __init__(
        self,
        program: Program,
        *,
        engine: Kind = "native",
        threads: int = 1,
        isa: str | None = None,
    ) -> None:
        if engine not in ("native", "reference"):
            raise ValueError(f"engine is {engine!r}, must be 'native' or 'reference'")
        if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is {threads!r}, must be an integer from 1 to {MAX_THREADS}")
        check(program)
        self.program, self.kind, self.threads = program, engine, threads
        self.isa: str | None = None
        self._network: Any
        if engine == "native":
            self.isa, self._network = build_native(program, threads, isa)
        elif isa is not None:
            raise ValueError(f"isa is {isa!r}, must be None: the reference engine has none")
        else:
            self._network = reference.Network(program)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the outputs, in their order; empty if the file does not tell them."""
        return self.program.classes

    @property
    def preprocessing(self) -> Mapping[str, Any] | None:
        """How an image becomes the input; None if the file does not tell it.

        `ftwt compile` notes `resize` (the shorter side, in pixels), `crop` (the side of the square
        that is cut out of the middle), `interpolation`, and `mean` and `std` of red, green and
        blue, of pixel values in [0, 1]. `ftwt run` does it with Pillow.
        """
        found = self.program.notes.get(PREPROCESSING)
        return found if isinstance(found, Mapping) else None

    def __call__(self, x: Any) -> Any:
        """Return the network's output.

        Args:
            x: (B, C, H, W) float32, a numpy array or a torch tensor on the CPU. It is read in
                place if it is contiguous.

        Returns:
            (B, C), or (B, C, H, W) if the output is a map of more than one pixel; of x's kind.

        Raises:
            ValueError: Not such an array; of another shape than the network was made for; or an
                image holds a value that is not finite.
        """
        images = self._images(x)
        return self._like(x, self._network.run(images, self._masks({}, len(images)))[0])

    def run(self, x: Any, masks: Mapping[str, Any] | None = None) -> tuple[Any, Stats]:
        """Return the network's output, as a call does, and what it took.

        Args:
            x: (B, C, H, W) float32, a numpy array or a torch tensor on the CPU.
            masks: Unit -> (B, C) bool, applied in place of what the unit's gate decides. The
                predictors run nevertheless, and are counted.

        Raises:
            ValueError: Not such an array, no such unit, another shape, or an image holds a value
                that is not finite.
        """
        images = self._images(x)
        given = self._masks(masks or {}, len(images))
        out, decided, macs = self._network.run(images, given)
        return self._like(x, out), self._stats(decided.view(np.bool_), macs)

    def profile(
        self,
        x: Any,
        masks: Mapping[str, Any] | None = None,
        *,
        runs: int = 20,
        warm_up: int = 1,
    ) -> np.ndarray:
        """Time each operation.

        Args:
            x: As of `run`, and so are the masks.
            masks: Unit -> (B, C) bool.
            runs: How often the batch runs, after those that are not counted.
            warm_up: How many these are.

        Returns:
            (operations,) milliseconds, means over the runs, in the order of `Program.operations`.

        Raises:
            ValueError: As `run`; or `runs` is below 1; or this is the reference engine.
        """
        if self.kind != "native":
            raise ValueError("the reference engine is not worth timing; profile a native one")
        if runs < 1:
            raise ValueError(f"runs is {runs}, must be at least 1")
        images = self._images(x)
        given = self._masks(masks or {}, len(images))
        for _ in range(warm_up):
            self._network.run(images, given)
        self._network.clock(True)
        for _ in range(runs):
            self._network.run(images, given)
        seconds = np.array(self._network.seconds())
        self._network.clock(False)
        return 1e3 * seconds / runs

    def save(self, path: str | os.PathLike[str], **notes: Any) -> None:
        """Write the program to a file that `load` reads.

        Args:
            path: The file.
            notes: `classes` and `notes` that it is to hold, too, as of `Program.described`.

        Raises:
            OSError: The folder cannot be written or the disk is full; an older file survives.
        """
        save(self.program.described(**notes), path)

    def __repr__(self) -> str:
        shape, program = "x".join(map(str, self.program.maps[0])), self.program
        output = "x".join(map(str, program.maps[program.output]))
        how = f"{self.isa}, threads={self.threads}" if self.kind == "native" else "reference"
        how += ", int8" if program.quantised else ""
        return f"Engine({shape} -> {output}, {len(program.gates)} gates, {how})"

    @staticmethod
    def _like(x: Any, out: np.ndarray) -> Any:
        if out.shape[2:] == (1, 1):
            out = out.reshape(out.shape[:2])
        return sys.modules["torch"].from_numpy(out) if _is_tensor(x) else out

    def _images(self, x: Any) -> np.ndarray:
        array = _numpy(x, "the input")
        if array.dtype != np.float32:
            fix = "convert it with .astype(numpy.float32) or .float()"
            raise ValueError(f"the input is {array.dtype}, must be float32; {fix}")
        wanted = self.program.maps[0]
        if array.ndim != 4 or array.shape[1:] != wanted or not len(array):
            sizes = ", ".join(map(str, wanted))
            raise ValueError(f"the input has shape {array.shape}, must be (B, {sizes}), B > 0")
        return np.ascontiguousarray(array)

    def _masks(self, masks: Mapping[str, Any], samples: int) -> dict[int, np.ndarray]:
        units = {gate.unit: index for index, gate in enumerate(self.program.gates)}
        given = {}
        for unit, mask in masks.items():
            if unit not in units:
                close = difflib.get_close_matches(str(unit), units) or list(units)[:3] or ["none"]
                raise ValueError(f"no gate has unit {unit!r}; there are {', '.join(close)} ...")
            array = _numpy(mask, f"the mask of {unit!r}")
            wanted = (samples, self.program.gates[units[unit]].channels)
            if array.dtype != np.bool_ or array.shape != wanted:
                have = f"{array.dtype} of shape {array.shape}"
                raise ValueError(f"the mask of {unit!r} is {have}, must be bool of shape {wanted}")
            given[units[unit]] = np.ascontiguousarray(array).view(np.uint8)
        return given

    def _stats(self, decided: np.ndarray, macs: np.ndarray) -> Stats:
        gates, executed = self.program.gates, macs.sum(1)
        ends = np.cumsum([gate.channels for gate in gates], dtype=int)
        masks = np.split(decided, ends[:-1], axis=1) if gates else []
        kept = [m.sum(1) / gate.prior for m, gate in zip(masks, gates, strict=True)]
        dense = self.program.dense_macs
        return Stats(
            keep=np.mean(kept, axis=0) if kept else np.ones(len(macs)),
            executed_macs=executed,
            reduction=1 - executed / dense if dense else np.zeros(len(macs)),
            masks={gate.unit: mask for gate, mask in zip(gates, masks, strict=True)},
            macs=macs,
        )


def build_native(
    program: Program, threads: int, isa: str | None, algorithm: str = "auto"
) -> tuple[str, Any]:
    """Build the native network of a checked program; return the instruction set and the network.

    Args:
        program: That passed `check`.
        threads: Of a run.
        isa: As of `Engine`.
        algorithm: `auto`, or for tests the one of all convolutions that it can do: `direct`,
            `winograd` or `dot`.
    """
    try:
        native = importlib.import_module(f"{__package__}._native")
    except ImportError as error:
        raise RuntimeError(
            f"the native engine was not built ({error}); install a C++17 compiler (GCC 12 or "
            "Clang 15, or later) and then ftwt again, or use engine='reference'"
        ) from error
    isas = native.isas()
    if isa is not None and isa not in isas:
        raise ValueError(f"isa is {isa!r}, must be one of {', '.join(isas)} on this machine")
    gates = [gate.channels for gate in program.gates]
    chosen = isa or isas[0]
    network = native.Network(
        list(program.maps), gates, program.output, threads, chosen, algorithm,
        list(program.types), [float(scale) for scale in program.scales],
    )  # fmt: skip
    uses = Counter(name for op in program.operations for name in op.constants.values())
    shared: dict[str, np.ndarray] = {}
    for operation in program.operations:  # one at a time: their constants may be in a file still
        fields = {f.name: getattr(operation, f.name) for f in dataclasses.fields(operation)}
        read = read_constants(program, operation, shared)
        shared |= {name: array for name, array in read.items() if uses[name] > 1}
        names = operation.constants
        arrays = {field: read[name] for field, name in names.items()}
        kind = type(operation).__name__
        network.add({"operation": kind, "names": names, **fields, **arrays})
    network.finish()
    return chosen, network


def _is_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(x, torch.Tensor)


def _numpy(x: Any, what: str) -> np.ndarray:
    """The array itself, or a tensor's memory as an array."""
    if isinstance(x, np.ndarray):
        return x
    if not _is_tensor(x):
        raise ValueError(f"{what} is a {type(x).__name__}, must be a numpy array or torch tensor")
    if x.device.type != "cpu" or str(x.dtype) not in ("torch.float32", "torch.bool"):
        have = f"{x.dtype} on {x.device}"
        raise ValueError(f"{what} is {have}, must be float32 (a mask: bool) on the CPU")
    if str(x.layout) != "torch.strided":
        kind = str(x.layout).removeprefix("torch.").lstrip("_")
        raise ValueError(f"{what} is laid out as {kind}; give it as plain numbers, by .to_dense()")
    return x.detach().numpy()
