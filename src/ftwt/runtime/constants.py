"""The constants of a program: what they are without reading them, and that they are allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from .fields import refuse
from .program import Operation, Program


def read_constants(
    program: Program, operation: Operation, known: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Read what an operation names, and make sure that its numbers are allowed.

    Args:
        program: That passed `check`.
        operation: One of its operations.
        known: Name -> array, constants that were read before.

    Returns:
        Name -> array.

    Raises:
        ValueError: A value is not finite, or -128, or the file that it lies in was altered.
    """
    arrays: dict[str, np.ndarray] = {}
    for field, name in operation.constants.items():
        if name in known:
            arrays[name] = known[name]
            continue
        array = arrays[name] = program.constants[name]
        with np.errstate(all="ignore"):  # a sum is finite only if all are; it may overflow
            finite = array.dtype.kind != "f" or np.isfinite(array.sum()) or np.isfinite(array).all()
        place = f"{type(operation).__name__} {reprlib.repr(operation.name)}"
        if array.dtype == np.int8 and array.min() < -127:
            refuse(place, field, name, "a constant of -127 to 127; some are -128")
        if not finite:
            refuse(place, field, name, "a constant of finite numbers; some are nan or infinite")
    return arrays


def spec_of(
    constants: Mapping[str, np.ndarray], name: str, refuse: Callable[..., NoReturn], field: str
) -> tuple[Any, tuple[int, ...]]:
    """Return dtype and shape of a constant, without reading one that is still in a file."""
    if name not in constants:
        refuse(field, name, "the name of a constant")
    specs = getattr(constants, "specs", None)
    if specs is not None:
        return specs[name]
    array = constants[name]
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        refuse(field, name, "a C-contiguous array")
    return array.dtype, array.shape
