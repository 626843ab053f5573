"""Programs on disk: what is saved comes back; what is damaged or hostile is refused."""

import dataclasses
import json
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from ftwt.runtime import Engine, load, load_program, save
from ftwt.runtime.stored import MAX_HEADER
from mutations import Mutant, fuzz, small_program
from programs import Builder, random_program

MUTATIONS, MANY = 1500, 100_000


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.ftwt"
    save(small_program(), path)
    return path


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def rewrite(path: Path, *, header: Any = None, content: Any = None, data: bytes = b"") -> None:
    """Write other parts, with checksums that fit."""
    now, rest = header_of(path)
    path.write_bytes(Mutant.file(header or now, content, data or rest))


def content_of(path: Path) -> dict[str, Any]:
    return json.loads(header_of(path)[0]["__metadata__"]["program"])


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(path, engine="reference")
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_what_is_saved_comes_back(tmp_path):
    for seed in range(40):
        program = random_program(seed)
        used = {name for op in program.operations for name in op.constants.values()}
        save(program, tmp_path / "net.ftwt")
        loaded = load_program(tmp_path / "net.ftwt")
        assert set(loaded.constants) == used
        for name in used:
            wanted, found = program.constants[name], loaded.constants[name]
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
            assert found.flags.c_contiguous and not found.flags.writeable
        for field in dataclasses.fields(program):
            if field.name != "constants":
                assert getattr(loaded, field.name) == getattr(program, field.name)


def test_the_loaded_engine_is_the_saved_one(tmp_path):
    program = small_program()
    x = np.random.default_rng(0).standard_normal((3, 2, 6, 5)).astype(np.float32)
    engine = Engine(program, engine="reference")
    engine.save(tmp_path / "folders" / "made" / "net.ftwt")
    loaded = load(tmp_path / "folders" / "made" / "net.ftwt", engine="reference")
    assert np.array_equal(loaded(x), engine(x))
    loaded.save(tmp_path / "folders" / "made" / "net.ftwt")  # over the file that it reads from
    again = load(tmp_path / "folders" / "made" / "net.ftwt", engine="reference")
    assert np.array_equal(again(x), engine(x))
    assert again.program.notes == {"made": ["for", {"tests": 1.5}]}
    assert os.listdir(tmp_path / "folders" / "made") == ["net.ftwt"]


def test_safetensors_reads_it_too(saved):
    constants = load_program(saved).constants
    with safetensors.safe_open(saved, framework="numpy") as file:
        assert set(file.keys()) == set(constants)
        for name in file.keys():
            assert np.array_equal(file.get_tensor(name), constants[name])
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("ftwt program", "1")
    assert json.loads(metadata["program"])["operations"][0]["operation"] == "Conv"


def test_constants_are_read_when_asked_for_and_verified(saved):
    constants = load_program(saved).constants
    first = constants["c0"]
    assert constants["c0"] is not first
    with open(saved, "r+b") as file:  # in place: the same file, other bytes
        file.seek(-len(header_of(saved)[1]), os.SEEK_END)
        file.write(b"\x55" * 8)
    with pytest.raises(ValueError, match="was altered after it was written"):
        [constants[name] for name in constants]
    os.truncate(saved, 100)
    with pytest.raises(ValueError, match="ends too soon"):
        constants["c0"]


def test_an_open_file_is_closed_with_its_program(saved):
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux")
    before = opened()
    program = load_program(saved)
    assert opened() == before + 1
    del program
    assert opened() == before
    for _ in range(3):
        saved.write_bytes(b"no program")
        refused(saved)
    assert opened() == before


def test_what_cannot_be_written_leaves_the_old_file(saved, tmp_path):
    before = saved.read_bytes()
    wrong = dataclasses.replace(small_program(), output=0)
    with pytest.raises(ValueError, match="output is 0"):
        save(wrong, saved)
    for notes in ({"a": {1, 2}}, {"a": float("nan")}, {"a": np.float32(1)}):
        with pytest.raises(ValueError, match="notes must be JSON"):
            save(dataclasses.replace(small_program(), notes=notes), saved)
    with pytest.raises(ValueError, match="depth of notes"):
        save(dataclasses.replace(small_program(), notes={"a": deep(40)}), saved)
    with pytest.raises(ValueError, match="header would have"):
        save(dataclasses.replace(small_program(), notes={"a": "x" * MAX_HEADER}), saved)
    assert saved.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        save(small_program(), tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "net.ftwt"]


def deep(levels: int) -> list[Any]:
    return [deep(levels - 1)] if levels else []


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.ftwt")
    with pytest.raises((ValueError, OSError)):
        load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "not a regular file")  # and does not wait for a writer
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError):
        load(tmp_path / "loop")


def test_a_link_is_followed(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    assert load_program(tmp_path / "link").output == small_program().output


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100])
def test_short_files(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    refused(saved, "damaged or no program")


def test_other_lengths(saved):
    whole = saved.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole + whole):
        saved.write_bytes(damaged)
        refused(saved, "damaged or no program")


@pytest.mark.parametrize("claim", [0, 1, MAX_HEADER, MAX_HEADER + 1, 2**40, 2**63, 2**64 - 1])
def test_claimed_lengths_of_the_header(saved, claim):
    saved.write_bytes(struct.pack("<Q", claim) + saved.read_bytes()[8:])
    refused(saved, "damaged or no program")


def test_a_sparse_file_of_a_terabyte(saved):
    if not hasattr(os, "truncate"):
        pytest.skip("needs sparse files")
    header, _ = header_of(saved)
    size = 2**40
    header["c0"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    names = {"__metadata__": header["__metadata__"], "c0": header["c0"]}
    rewrite(saved, header=names)
    try:
        os.truncate(saved, os.path.getsize(saved) - len(header_of(saved)[1]) + size)
    except OSError:
        pytest.skip("no room for sparse files")
    refused(saved, "at most")


HEADERS: dict[str, bytes] = {
    "no JSON": b"{nonsense}",
    "no object": b"[1, 2]",
    "not UTF-8": b'{"\xff": 1}',
    "nested deeply": b"[" * 100_000,
    "nested deeply, objects": b'{"a":' * 100_000,
    "a key twice": b'{"a": {"dtype": "U8"}, "a": {"dtype": "U8"}}',
    "not a number": b'{"a": NaN}',
    "infinity": b'{"a": 1e999}',
    "a long number": b'{"a": ' + b"9" * 10_000 + b"}",
    "metadata that is a list": b'{"__metadata__": []}',
    "metadata that is no string": b'{"__metadata__": {"format": 1}}',
    "tensor that is no object": b'{"__metadata__": {}, "a": 1}',
    "nothing else": b"{}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(tmp_path, name):
    path = tmp_path / "net.ftwt"
    path.write_bytes(len(HEADERS[name]).to_bytes(8, "little") + HEADERS[name])
    refused(path)


TENSORS: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": "F64"},
    "dtype that is a list": {"dtype": ["F32"]},
    "negative size": {"shape": [-4, 2, -3, 3]},
    "size of zero": {"shape": [4, 0, 3, 3]},
    "fractional size": {"shape": [4.0, 2, 3, 3]},
    "truth for a size": {"shape": [4, 2, 3, 3, True]},
    "huge size": {"shape": [2**62, 4]},
    "shape that is no list": {"shape": 72},
    "too many axes": {"shape": [4, 2, 3, 3] + [1] * 10},
    "other shape": {"shape": [4, 2, 9, 1]},
    "transposed": {"shape": [2, 4, 3, 3]},
    "start before the data": {"data_offsets": [-8, 280]},
    "end after the data": {"data_offsets": [2**40, 2**40 + 288]},
    "overlap": {"data_offsets": [4, 292]},
    "backwards": {"data_offsets": [288, 0]},
    "no pair": {"data_offsets": [0]},
    "further field": {"more": 1},
}


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_tensors(saved, name):
    header, _ = header_of(saved)
    assert header["c0"] == {"dtype": "F32", "shape": [4, 2, 3, 3], "data_offsets": [0, 288]}
    header["c0"] |= TENSORS[name]
    rewrite(saved, header=header)
    refused(saved)


def test_tensors_that_nothing_names_or_that_are_missing(saved):
    header, data = header_of(saved)
    hidden = {"dtype": "U8", "shape": [5], "data_offsets": [len(data), len(data) + 5]}
    rewrite(saved, header={**header, "hidden": hidden}, data=data + b"12345")
    refused(saved, "constants is ['hidden']")
    rewrite(saved, header={**header, "renamed": header["c0"], "c0": None})
    refused(saved)
    header["renamed"] = header.pop("c0")
    rewrite(saved, header=header, data=data)
    refused(saved, "constants is ['c0', 'renamed']")


def metadata(path: Path, **fields: Any) -> None:
    header, _ = header_of(path)
    header["__metadata__"] |= fields
    rewrite(path, header=header)


def test_versions_and_formats(saved):
    metadata(saved, version="4")
    refused(saved, "version is '4'", "must be 1 to 3", "update ftwt")
    metadata(saved, version="2")
    refused(saved, "set of fields", "types, scales")
    metadata(saved, version="1", format="pt")
    refused(saved, "format is 'pt'", "'ftwt program'")
    metadata(saved, format="ftwt program", crc32="00000000")
    refused(saved, "crc32", "the file was altered")
    empty = {"__metadata__": {"format": "ftwt program", "version": "1"}}
    rewrite(saved, header=empty)
    refused(saved)


def test_a_file_of_other_tensors(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "format is None")


CONTENTS: dict[str, tuple[Any, str]] = {
    "a list": ([], "set of fields"),
    "a missing field": ({"output": ...}, "set of fields"),
    "a further field": ({"more": 1}, "set of fields"),
    "maps": ({"maps": 5}, "maps is 5"),
    "a map that is a number": ({"maps": [1]}, "maps"),
    "a map of floats": ({"maps": [[2.0, 6, 5]]}, "maps"),
    "gates": ({"gates": "x"}, "gates is 'x'"),
    "a gate of strangers": ({"gates": [{"unit": "a"}]}, "gate: set of fields"),
    "operations": ({"operations": None}, "operations is None"),
    "an operation that is none": ({"operations": [5]}, "operation is None"),
    "an unknown operation": ({"operations": [{"operation": "Eval"}]}, "one of Conv"),
    "a list for a name": ({"operations": [{"operation": ["Conv"]}]}, "one of Conv"),
    "an operation without fields": ({"operations": [{"operation": "Conv"}]}, "Conv: set of"),
    "output": ({"output": True}, "output is True"),
    "classes": ({"classes": "abc"}, "classes is 'abc'"),
    "dense MACs": ({"dense_macs": 2**60}, "dense_macs"),
    "notes": ({"notes": []}, "notes is []"),
    "deep notes": ({"notes": {"a": deep(100)}}, "depth of notes"),
    "checksums": ({"checksums": []}, "checksums is []"),
    "checksums of text": ({"checksums": {"c0": "x"}}, "checksums is"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_hostile_programs(saved, name):
    change, word = CONTENTS[name]
    content: Any = content_of(saved)
    if isinstance(change, list):
        content = change
    else:
        content = {k: v for k, v in (content | change).items() if v is not ...}
    rewrite(saved, content=content)
    refused(saved, word)


def test_hostile_fields(saved):
    content = content_of(saved)
    wrong = ([], {}, "\ud800", [[1]], 1.5, 2**70, True, [-1, -1], None)
    fine: dict[str, Any] = dict.fromkeys(("mask", "after", "add", "reduce"))
    fine |= {"threshold": 1.5, "softmax": True, "include_padding": True, "adaptive": True}
    for index, operation in enumerate(content["operations"]):
        for field in operation:
            for value in wrong:
                if value == operation[field] or (field in fine and value == fine[field]):
                    continue
                changed = json.loads(json.dumps(content))
                changed["operations"][index][field] = value
                rewrite(saved, content=changed)
                with pytest.raises(ValueError):
                    print(operation["name"], field, value, load_program(saved))


def test_every_flipped_bit_is_found(saved):
    """In the header and everywhere: a sample of bits, each of which must be found."""
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(8 * len(whole), size=600, replace=False):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << (position % 8)
        saved.write_bytes(damaged)
        with pytest.raises(ValueError):
            load(saved, engine="reference")


def test_every_truncation_is_found(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), 19):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            load(saved, engine="reference")


def test_mutations(tmp_path):
    outcomes = fuzz(tmp_path, 0, MUTATIONS)
    assert outcomes["refused"] > 0.6 * MUTATIONS
    assert outcomes["ran"] > 0.05 * MUTATIONS  # checksums do not keep the fuzz from the inside


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutations(tmp_path):
    pytest.importorskip("ftwt.runtime._native")
    outcomes = fuzz(tmp_path, MUTATIONS, MANY, native=True)
    assert outcomes["refused"] + outcomes["loaded"] == MANY


def test_files_are_private_to_no_one(tmp_path):
    """As any file that a program writes: no stricter, no looser than the user asks for."""
    save(small_program(), tmp_path / "net.ftwt")
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("net.ftwt", "plain")}
    assert len(modes) == 1


def test_odd_lengths_keep_floats_aligned(tmp_path):
    build = Builder((3, 2, 2))
    build.silence(0, build.fixed([1, 0, 1]))
    build.conv(1, 2)
    save(build.program(), tmp_path / "net.ftwt")
    header, data = header_of(tmp_path / "net.ftwt")
    floats = [v["data_offsets"][0] for v in header.values() if v.get("dtype") == "F32"]
    assert all(start % 4 == 0 for start in floats)
    checksums = content_of(tmp_path / "net.ftwt")["checksums"]
    start, end = header["c0"]["data_offsets"]
    assert checksums["c0"] == zlib.crc32(data[start:end])
