"""What a program may not be: each error names operation, field, value and what is allowed."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from ftwt.runtime import Conv, Engine, Operation, Program, check
from ftwt.runtime.check import MAX_MAP, MAX_STEP
from programs import Builder, random_program


def base() -> Program:
    """One operation of each kind, with all options."""
    build = Builder((3, 8, 8))
    stem = build.conv(0, 6, (3, 3), padding=(1, 1, 1, 1), act="relu")  # map 1
    vector = build.pool(stem, "max")  # map 2
    gate = build.predict((vector,), 6, rank=2)
    fixed = build.fixed([1, 0, 1, 1, 0, 1])
    options = {"padding": (1, 1, 1, 1), "mask": gate, "add": stem, "post": "relu", "after": fixed}
    wide = build.conv(stem, 6, (3, 3), groups=2, **options)  # map 3
    scaled = build.combine(wide, vector, "mul")  # map 4
    normed = build.affine(scaled)  # map 5
    active = build.activate(normed, "silu")  # map 6
    silent = build.silence(active, fixed)  # map 7
    both = build.gather((silent, stem), [11, 0, 5, 6])  # map 8
    small = build.pool(both, "mean", kernel=(3, 3), stride=(2, 2), padding=(1, 1))  # map 9
    flat = build.flatten(small)  # map 10
    vector = build.quantize(build.conv(flat, 5), "s8", 0.5)  # map 12
    build.dequantize(build.qconv(vector, 5, out=("s8", 0.5)))
    return build.program(classes=tuple("abcde"))


KINDS = [type(op).__name__ for op in base().operations]


def edited(kind: str, fields: dict[str, Any], *, last: bool = False) -> Program:
    """The base with other fields in its first (or last) operation of a kind."""
    program = base()
    where = [i for i, k in enumerate(KINDS) if k == kind][-1 if last else 0]
    operations = list(program.operations)
    operations[where] = dataclasses.replace(operations[where], **fields)
    return dataclasses.replace(program, operations=tuple(operations))


def having(program: Program, array: Any, kind: str, field: str) -> Program:
    """The program with another constant."""
    op = next(op for op in program.operations if type(op).__name__ == kind)
    constants = {**program.constants, op.constants[field]: array}
    return dataclasses.replace(program, constants=constants)


def refuses(program: Program, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check(program)
    for word in words:
        assert word in str(caught.value), caught.value


def test_valid_programs_pass():
    check(base())
    for seed in range(50):
        check(random_program(seed))
    assert {kind.__name__ for kind in Operation.__subclasses__()} == set(KINDS)


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_each_field_has_its_type(kind):
    op = next(op for op in base().operations if type(op).__name__ == kind)
    wrong = [None, "x", -1, 1.5, True, 2**70, float("nan"), np.int64(1), (), (1,), ("x", "y"), {},
             [1, 2], (0, 0), (-1, -1), (2**40, 2**40), (1, 1, 1, 2**31), (True, True)]  # fmt: skip
    refused = 0
    for field in dataclasses.fields(op):
        for value in wrong:
            program = edited(kind, {field.name: value})
            try:
                check(program)
            except ValueError as error:
                refused += 1
                assert kind in str(error) or "program" in str(error)
    assert refused > 9 * len(dataclasses.fields(op))


CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "map that does not exist": ("Conv", {"x": 99}, ("conv0", "maps read", "99")),
    "map before it is written": ("Pool", {"x": 5}, ("maps read is 5", "earlier")),
    "map written twice": ("Activate", {"out": 5}, ("out is 5", "no operation wrote before")),
    "input written": ("Activate", {"out": 0}, ("out is 0",)),
    "mask written twice": ("Fixed", {"mask": 0}, ("mask is 0", "no operation wrote before")),
    "mask that does not exist": ("Silence", {"mask": 7}, ("mask is 7",)),
    "stride of zero": ("Conv", {"stride": (0, 1)}, ("stride is (0, 1)", "from 1")),
    "other stride": ("Conv", {"stride": (2, 1)}, ("shape of out, axis 1 is 8", "4")),
    "negative padding": ("Conv", {"padding": (-1, 1, 1, 1)}, ("padding", "from 0")),
    "wide padding": ("Conv", {"padding": (MAX_STEP + 1, 1, 1, 1)}, ("padding", "from 0 to 1024")),
    "long stride": ("Conv", {"stride": (1, MAX_STEP + 1)}, ("stride", "from 1 to 1024")),
    "long dilation": ("Conv", {"dilation": (1, MAX_STEP + 1)}, ("dilation", "from 1 to 1024")),
    "far dilation": ("Conv", {"dilation": (9, 1)}, ("no larger than its padded input",)),
    "groups": ("Conv", {"groups": 4}, ("groups is 4", "divisor of 3 inputs and of 6 outputs")),
    "no groups": ("Conv", {"groups": 0}, ("groups is 0",)),
    "activation": ("Conv", {"act": "mish"}, ("act is 'mish'", "one of none, relu")),
    "post without add": ("Conv", {"post": "relu"}, ("post", "'none' without add")),
    "unknown constant": ("Conv", {"weight": "nowhere"}, ("weight is 'nowhere'", "constant")),
    "constant of another shape": ("Conv", {"weight": "c1"}, ("weight", "(6, 3, kh, kw)", "(6,)")),
    "endless name": ("Conv", {"name": "x" * 1001}, ("name", "at most 1000")),
    "control characters": ("Conv", {"name": "\x1b[2J"}, ("name", "printable")),
    "threshold": ("Predict", {"threshold": float("nan")}, ("threshold is nan", "finite")),
    "large threshold": ("Predict", {"threshold": 1e39}, ("threshold", "finite float32")),
    "features that are a map": ("Predict", {"features": (1,)}, ("features is 1", "vector")),
    "no features": ("Predict", {"features": ()}, ("features", "at least one")),
    "padding over the kernel": ("Pool", {"adaptive": False, "padding": (1, 0)}, ("padding",)),
    "large kernel": ("Pool", {"kernel": (2**20, 2**20)}, ("kernel", str(MAX_MAP))),
    "pool's kind": ("Pool", {"kind": "min"}, ("kind is 'min'", "max, mean")),
    "spread over space": ("Combine", {"b": 0}, ("b is 0", "(6, 8, 8) or (6, 1, 1)")),
    "nothing to gather": ("Gather", {"xs": ()}, ("xs", "at least one")),
    "maps of other sizes": ("Gather", {"xs": (7, 2)}, ("rows and columns of map 2",)),
    "flattened": ("Flatten", {"x": 8}, ("shape of out", "256")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_an_operation_may_not_be(name):
    kind, fields, words = CASES[name]
    refuses(edited(kind, fields), kind, *words)


def test_a_masked_convolution():
    last = {"last": True}
    refuses(edited("Conv", {"mask": 0}, **last), "mask is 0", "5 channels, this one has 6")
    refuses(edited("Conv", {"after": 3}, **last), "after is 3", "earlier operation")
    refuses(edited("Conv", {"add": 2}, **last), "shape of add is (6, 1, 1)", "(5, 1, 1)")
    program = base()
    operations = [
        dataclasses.replace(op, post="sigmoid") if isinstance(op, Conv) and op.add else op
        for op in program.operations
    ]
    refuses(dataclasses.replace(program, operations=tuple(operations)), "post is 'sigmoid'")


def test_constants():
    def wrong(kind: str, field: str, array: Any, *words: str) -> None:
        refuses(having(base(), array, kind, field), kind, field, *words)

    weight = np.zeros((6, 3, 3, 3), np.float32)
    wrong("Conv", "weight", weight.astype(np.float64), "float32", "float64")
    wrong("Conv", "weight", weight.astype(">f4"), "float32")
    wrong("Conv", "weight", weight.transpose(0, 1, 3, 2), "C-contiguous")
    wrong("Conv", "weight", weight.tolist(), "array")
    wrong("Conv", "weight", weight[:, :0], "of 1 to")
    wrong("Conv", "weight", weight[:, :2].copy(), "(6, 3, kh, kw)", "(6, 2, 3, 3)")
    wrong("Conv", "bias", np.zeros((6, 1), np.float32), "(6,)", "(6, 1)")
    wrong("Predict", "weight", np.zeros((6, 3), np.float32), "(6, 2)", "(6, 3)")
    wrong("Predict", "reduce", np.zeros((2, 3), np.float32), "(rank, 6)", "(2, 3)")
    wrong("Fixed", "value", np.full(6, 2, np.uint8), "value is 2", "0 or 1")
    wrong("Fixed", "value", np.ones(5, np.uint8), "(6,)", "(5,)")
    wrong("Gather", "index", np.array([0, 1, 2, 12], np.int32), "index is 12", "to 11")
    wrong("Gather", "index", np.array([0, 1, 2, -2], np.int32), "index is -2", "to 11")
    wrong("Gather", "index", np.zeros(3, np.int32), "(4,)", "(3,)")
    wrong("Affine", "scale", np.zeros(5, np.float32), "(6,)", "(5,)")


def test_the_program_itself():
    def wrong(*words: str, **fields: Any) -> None:
        refuses(dataclasses.replace(base(), **fields), "program", *words)

    maps, gates = base().maps, base().gates
    wrong("output is 99", output=99)
    wrong("output is 0", "writes", output=0)
    wrong("output is True", output=True)
    wrong("maps is (", maps=(*maps, (1, 2)))
    wrong("shape of map 15 is (1, 0, 2)", maps=(*maps, (1, 0, 2)))
    wrong("shape of map 15", f"{MAX_MAP} elements", maps=(*maps, (2**12, 2**12, 2**12)))
    wrong("elements of all maps", maps=(*maps, *[(2**5, 2**11, 2**11)] * 9))
    wrong("number of maps", maps=(*maps, *[(1, 1, 1)] * 20_000))
    wrong(
        "maps is 15",
        "written by an operation",
        maps=(*maps, (1, 2, 2)),
        types=(*base().types, "f32"),
        scales=(*base().scales, 1.0),
    )
    wrong("at least the input", maps=())
    wrong("gates is 'new'", gates=(*gates, dataclasses.replace(gates[0], unit="new")))
    wrong("classes is 3", "none or 5", classes=("a", "b", "c"))
    wrong("classes is 'a\\n'", "printable", classes=("a\n", "b", "c", "d", "e"))
    wrong("dense_macs is -1", dense_macs=-1)
    wrong("dense_macs is 1.5", dense_macs=1.5)
    wrong("notes", notes=[])
    refuses(dataclasses.replace(base(), gates=(gates[0], gates[0])), "unit is 'unit0'", "no other")
    for fields in ({"prior": 5}, {"channels": 0}, {"unit": "\0"}, {"prior": 2**30}):
        gate = dataclasses.replace(gates[1], **fields)
        refuses(dataclasses.replace(base(), gates=(gates[0], gate)), "gate", next(iter(fields)))


def test_an_operation_of_ones_own_is_none():
    class Stranger(Conv):
        pass

    program = base()
    fields = {f.name: getattr(program.operations[0], f.name) for f in dataclasses.fields(Conv)}
    operations = (Stranger(**fields), *program.operations[1:])
    refuses(dataclasses.replace(program, operations=operations), "Stranger", "one of Conv")


class Claimed(dict[str, np.ndarray]):
    """Says what its constants are without having them, as those of a file do."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__({name: np.zeros(1) for name in shapes})
        self.specs = {name: (np.dtype("f4"), shape) for name, shape in shapes.items()}


def test_sizes_are_bounded():
    def program(size: int, kernel: int, *, channels: int = 1, filters: int = 1, padding: int = 0,
                count: int = 1) -> Program:  # fmt: skip
        fields: dict[str, Any] = {"x": 0, "weight": "w", "bias": "b", "padding": (padding,) * 4}
        operations = tuple(Conv(name="a", out=1 + i, **fields) for i in range(count))
        out = size + 2 * padding - kernel + 1
        maps = ((channels, size, size), *[(filters, out, out)] * count)
        constants = Claimed(w=(filters, channels, kernel, kernel), b=(filters,))
        return Program(maps, (), operations, 1, constants, 0)

    check(program(1024, 1024))
    refuses(program(1025, 1025), "weight", str(2**20))
    check(program(11585, 1))
    refuses(program(11586, 1), "shape of map 0", str(MAX_MAP))
    refuses(program(11585, 3, padding=1), "padding", str(MAX_MAP))
    check(program(1024, 1024, filters=2**8))
    refuses(program(1024, 1024, filters=2**8 + 1), "weight", str(2**28))
    refuses(program(4096, 1, filters=8, count=8), "elements of all maps", str(2**30))


def test_the_engine_checks():
    with pytest.raises(ValueError, match="stride"):
        Engine(edited("Conv", {"stride": (0, 1)}), engine="reference")
