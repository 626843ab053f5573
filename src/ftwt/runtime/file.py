"""Programs on disk: a safetensors file of the constants whose metadata holds the rest as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..files.json import parse_json
from . import stored
from .check import check
from .constants import read_constants
from .fields import refuse
from .program import KINDS, VERSION, Gate, Operation, Program

FORMAT = "ftwt program"
FIELDS = ("maps", "gates", "operations", "output", "dense_macs", "classes", "notes", "checksums")
QUANTISED = ("types", "scales")  # further fields of version 2
MAX_DEPTH = 32  # of the notes


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Write a program to a file for `load_program`.

    Args:
        program: That passes `check`; of its constants, those that operations name are written.
        path: The file; its folder is made if need be, and an older file is replaced.

    Raises:
        OSError: The folder cannot be written or the disk is full; an older file survives.
        ValueError: The program is not valid, or its notes are not JSON.
    """
    check(program)
    _check_notes(program.notes)
    constants: dict[str, np.ndarray] = {}
    for operation in program.operations:
        constants |= read_constants(program, operation, constants)
    content = {
        "maps": program.maps,
        "gates": [dataclasses.asdict(gate) for gate in program.gates],
        "operations": [
            {"operation": type(operation).__name__, **dataclasses.asdict(operation)}
            for operation in program.operations
        ],
        "output": program.output,
        "dense_macs": program.dense_macs,
        "classes": program.classes,
        "notes": dict(program.notes),
        "checksums": {name: zlib.crc32(array.data) for name, array in constants.items()},
    }
    version = 1
    if program.quantised:  # what has no such map can be read by older versions
        version = VERSION
        content |= {"types": program.types, "scales": program.scales}
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the notes must be JSON values with finite numbers ({error})") from error
    metadata = {"format": FORMAT, "version": str(version), "crc32": _crc(text), "program": text}
    stored.write(path, constants, metadata)


def load_program(path: str | os.PathLike[str]) -> Program:
    """Read a program that `save` wrote, and check it.

    Its constants stay in the file: each is read, and verified, whenever it is asked for.

    Args:
        path: The file; it may come from a stranger.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is truncated, altered, of another version, or no program's.
    """
    constants = stored.Stored(path)
    try:
        program = _decode(constants)
        check(program)
    except ValueError as error:
        constants.close()
        raise ValueError(f"{path} holds no program that can run: {error}") from error
    return program


def _decode(constants: stored.Stored) -> Program:
    metadata = constants.metadata
    if metadata.get("format") != FORMAT:
        refuse("metadata", "format", metadata.get("format"), f"{FORMAT!r}, written by ftwt")
    version = metadata.get("version")
    if version not in ("1", str(VERSION)):
        allowed = f"1 or {VERSION}, the versions that this ftwt reads; compile anew, or update ftwt"
        refuse("metadata", "version", version, allowed)
    text = metadata.get("program", "")
    if metadata.get("crc32") != _crc(text):
        refuse("metadata", "crc32", metadata.get("crc32"), f"{_crc(text)}; the file was altered")
    fields = FIELDS if version == "1" else (*FIELDS, *QUANTISED)
    content = _object(parse_json(text), fields, "program")
    checksums = content["checksums"]
    sums = checksums.values() if isinstance(checksums, dict) else (None,)
    if not all(type(value) is int for value in sums):
        refuse("program", "checksums", checksums, "an integer for each constant")
    operations = tuple(_operation(entry) for entry in _list(content["operations"], "operations"))
    named = {name for operation in operations for name in _names(operation)}
    if not named == checksums.keys() == constants.keys():
        odd = (named ^ checksums.keys()) | (named ^ constants.keys())
        refuse("program", "constants", sorted(odd), "named by an operation, with checksum, present")
    constants.checksums = checksums
    _check_notes(content["notes"])
    return Program(
        maps=tuple(_plain(shape) for shape in _list(content["maps"], "maps")),
        gates=tuple(
            Gate(**_object(entry, _fields(Gate), "gate"))
            for entry in _list(content["gates"], "gates")
        ),
        operations=operations,
        output=content["output"],
        constants=constants,
        dense_macs=content["dense_macs"],
        classes=_plain(content["classes"]),
        notes=content["notes"],
        types=_plain(content.get("types", [])),
        scales=_plain(content.get("scales", [])),
    )


def _operation(entry: Any) -> Operation:
    kind = entry.get("operation") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        refuse("operations", "operation", kind, f"one of {', '.join(KINDS)}")
    fields = _object(entry, ("operation", *_fields(KINDS[kind])), kind)
    return KINDS[kind](**{k: _plain(value) for k, value in fields.items() if k != "operation"})


def _names(operation: Operation) -> list[str]:
    """The constants that it names, where these are names at all: `check` comes later."""
    return [name for name in operation.constants.values() if isinstance(name, str)]


def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _object(value: Any, fields: tuple[str, ...], place: str) -> dict[str, Any]:
    """A JSON object with exactly these fields."""
    if not isinstance(value, dict) or value.keys() != set(fields):
        found = list(value) if isinstance(value, dict) else value
        refuse(place, "set of fields", found, ", ".join(fields))
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        refuse("program", field, value, "a list")
    return value


def _plain(value: Any) -> Any:
    """JSON has lists for tuples."""
    return tuple(value) if isinstance(value, list) else value


def _check_notes(notes: Any) -> None:
    layer, depth = [notes], 0
    while layer := [v for v in layer if isinstance(v, Mapping | list | tuple)]:
        if depth == MAX_DEPTH:
            refuse("program", "depth of notes", "more", f"at most {MAX_DEPTH}")
        layer = [item for v in layer for item in (v.values() if isinstance(v, Mapping) else v)]
        depth += 1


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
