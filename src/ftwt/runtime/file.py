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
from .passes import MAX_PASSES, Passes, check_passes
from .program import KINDS, Gate, Operation, Program

FORMAT = "ftwt program"
PLAIN, EIGHT_BITS, SEVERAL = "1", "2", "3"  # versions: what can be is read by older ones
FIELDS = ("maps", "gates", "operations", "output", "dense_macs", "classes", "notes")
QUANTISED = ("types", "scales")  # further fields of later versions
MAX_DEPTH = 32  # of the notes


def save(program: Program | Passes, path: str | os.PathLike[str]) -> None:
    """Write a program, or the passes of a second look, to a file for `load`.

    Args:
        program: That passes `check`; of its constants, those that operations name are written.
            What is equal in several passes is written once.
        path: The file; its folder is made if need be, and an older file is replaced.

    Raises:
        OSError: The folder cannot be written or the disk is full; an older file survives.
        ValueError: The program is not valid, or its notes are not JSON.
    """
    passes = program if isinstance(program, Passes) else Passes((program,))
    for one in passes.programs:
        check(one)
        _check_notes(one.notes)
    check_passes(passes.programs, passes.thresholds)
    constants: dict[str, np.ndarray] = {}
    programs = [_share(one, constants) for one in passes.programs]
    checksums = {name: zlib.crc32(array.data) for name, array in constants.items()}
    content: dict[str, Any]
    if len(programs) > 1:
        version = SEVERAL
        contents = [_content(one, (*FIELDS, *QUANTISED)) for one in programs]
        content = {"passes": contents, "thresholds": passes.thresholds}
    else:
        (one,) = programs
        version = EIGHT_BITS if one.quantised else PLAIN
        content = _content(one, (*FIELDS, *QUANTISED) if one.quantised else FIELDS)
    content["checksums"] = checksums
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the notes must be JSON values with finite numbers ({error})") from error
    metadata = {"format": FORMAT, "version": version, "crc32": _crc(text), "program": text}
    stored.write(path, constants, metadata)


def _share(program: Program, constants: dict[str, np.ndarray]) -> Program:
    """Add a program's constants to those of a file, and name those that are there already."""
    known: dict[str, np.ndarray] = {}
    for operation in program.operations:
        known |= read_constants(program, operation, known)
    names: dict[str, str] = {}
    for name, array in known.items():
        place, number = name, 2
        while place in constants and not _equal(constants[place], array):
            place, number = f"{name} {number}", number + 1
        constants[place] = array
        names[name] = place
    operations = tuple(
        dataclasses.replace(one, **{field: names[name] for field, name in one.constants.items()})
        for one in program.operations
    )
    return dataclasses.replace(program, operations=operations, constants=constants)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _content(program: Program, fields: tuple[str, ...]) -> dict[str, Any]:
    content = {name: getattr(program, name) for name in fields}
    return content | {
        "gates": [dataclasses.asdict(gate) for gate in program.gates],
        "operations": [
            {"operation": type(operation).__name__, **dataclasses.asdict(operation)}
            for operation in program.operations
        ],
        "notes": dict(program.notes),
    }


def load_program(path: str | os.PathLike[str]) -> Program:
    """Read a program that `save` wrote, and check it.

    Its constants stay in the file: each is read, and verified, whenever it is asked for.

    Args:
        path: The file; it may come from a stranger.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is truncated, altered, of another version, no program's, or holds a
            second look.
    """
    programs = load_passes(path).programs
    if len(programs) > 1:
        raise ValueError(f"{path} holds {len(programs)} programs; load_passes reads them all")
    return programs[0]


def load_passes(path: str | os.PathLike[str]) -> Passes:
    """Read what `save` wrote, one program or the passes of a second look; as `load_program`."""
    constants = stored.Stored(path)
    try:
        passes = _decode(constants)
        for program in passes.programs:
            check(program)
        check_passes(passes.programs, passes.thresholds)
    except ValueError as error:
        constants.close()
        raise ValueError(f"{path} holds no program that can run: {error}") from error
    return passes


def _decode(constants: stored.Stored) -> Passes:
    metadata = constants.metadata
    if metadata.get("format") != FORMAT:
        refuse("metadata", "format", metadata.get("format"), f"{FORMAT!r}, written by ftwt")
    version = metadata.get("version")
    if version not in (PLAIN, EIGHT_BITS, SEVERAL):
        allowed = f"{PLAIN} to {SEVERAL}, which this ftwt reads; compile anew, or update ftwt"
        refuse("metadata", "version", version, allowed)
    text = metadata.get("program", "")
    if metadata.get("crc32") != _crc(text):
        refuse("metadata", "crc32", metadata.get("crc32"), f"{_crc(text)}; the file was altered")
    fields = FIELDS if version == PLAIN else (*FIELDS, *QUANTISED)
    read = parse_json(text)
    thresholds: tuple[Any, ...] = ()
    if version == SEVERAL:
        content = _object(read, ("passes", "thresholds", "checksums"), "program")
        contents = _list(content["passes"], "passes")
        thresholds = tuple(_list(content["thresholds"], "thresholds"))
        if not 2 <= len(contents) <= MAX_PASSES:
            refuse("program", "passes", contents, f"2 to {MAX_PASSES}")
    else:
        content = _object(read, (*fields, "checksums"), "program")
        contents = [{name: content[name] for name in fields}]
    checksums = content["checksums"]
    sums = checksums.values() if isinstance(checksums, dict) else (None,)
    if not all(type(value) is int for value in sums):
        refuse("program", "checksums", checksums, "an integer for each constant")
    programs = tuple(_program(_object(one, fields, "program"), constants) for one in contents)
    named = {name for one in programs for op in one.operations for name in _names(op)}
    if not named == checksums.keys() == constants.keys():
        odd = (named ^ checksums.keys()) | (named ^ constants.keys())
        refuse("program", "constants", sorted(odd), "named by an operation, with checksum, present")
    constants.checksums = checksums
    return Passes(programs, thresholds)


def _program(content: dict[str, Any], constants: stored.Stored) -> Program:
    _check_notes(content["notes"])
    return Program(
        maps=tuple(_plain(shape) for shape in _list(content["maps"], "maps")),
        gates=tuple(
            Gate(**_object(entry, _fields(Gate), "gate"))
            for entry in _list(content["gates"], "gates")
        ),
        operations=tuple(_operation(entry) for entry in _list(content["operations"], "operations")),
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
