"""Programs for tests: a builder that works out shapes, and small random programs."""

import math
from typing import Any

import numpy as np

from ftwt.runtime import (
    Activate,
    Affine,
    Combine,
    Conv,
    Dequantize,
    Fixed,
    Flatten,
    Gate,
    Gather,
    Operation,
    Pool,
    Predict,
    Program,
    QConv,
    Quantize,
    Silence,
)

Shape = tuple[int, int, int]
ACTS = ("none", "relu", "relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid",
        "leaky_relu", "elu", "gelu", "tanh")  # fmt: skip
KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1), (2, 2), (4, 3))
MASKS = ("all", "one", "all but one", "random", "none")


class Builder:
    """Appends operations; each method returns the index of the map or mask that it writes."""

    def __init__(self, shape: Shape, *, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.maps: list[Shape] = [shape]
        self.gates: list[Gate] = []
        self.operations: list[Operation] = []
        self.constants: dict[str, np.ndarray] = {}
        self.dense_macs = 0
        self.quantised: dict[int, tuple[Any, float]] = {}  # type and scale of maps that are not f32

    def program(self, output: int | None = None, **fields: Any) -> Program:
        output = len(self.maps) - 1 if output is None else output
        given: dict[str, Any] = {"dense_macs": self.dense_macs} | fields
        if self.quantised:
            kinds = [self.quantised.get(i, ("f32", 1.0)) for i in range(len(self.maps))]
            given = {
                "types": tuple(k for k, _ in kinds),
                "scales": tuple(s for _, s in kinds),
            } | given
        parts = (tuple(self.maps), tuple(self.gates), tuple(self.operations), output)
        return Program(*parts, self.constants, **given)

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array, dtype)
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self.rng.standard_normal(shape) * scale)

    def append(self, kind: type[Operation], shape: Shape | None = None, /, **fields: Any) -> int:
        if shape is not None:
            fields["out"] = len(self.maps)
            self.maps.append(shape)
        name = f"{kind.__name__.lower()}{len(self.operations)}"
        self.operations.append(kind(name=name, **fields))
        return len(self.maps) - 1

    def conv(self, x: int, filters: int, kernel: tuple[int, int] = (1, 1), **fields: Any) -> int:
        fan_in = self.maps[x][0] // fields.get("groups", 1) * math.prod(kernel)
        if "weight" not in fields:
            shape = (filters, self.maps[x][0] // fields.get("groups", 1), *kernel)
            fields["weight"] = self.normal(*shape, scale=fan_in**-0.5)
        fields.setdefault("bias", self.normal(filters, scale=0.3))
        return self.any_convolution(Conv, x, filters, kernel, **fields)

    def any_convolution(
        self, kind: type[Operation], x: int, filters: int, kernel: tuple[int, int], **fields: Any
    ) -> int:
        (c, h, w), groups = self.maps[x], fields.get("groups", 1)
        top, left, bottom, right = fields.get("padding", (0, 0, 0, 0))
        padded, stride = (h + top + bottom, w + left + right), fields.get("stride", (1, 1))
        dilation = fields.get("dilation", (1, 1))
        rows, columns = (
            (padded[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
        )
        fan_in = c // groups * math.prod(kernel)
        self.dense_macs += fan_in * filters * rows * columns
        return self.append(kind, (filters, rows, columns), x=x, **fields)

    def qconv(
        self, x: int, filters: int, kernel: tuple[int, int] = (1, 1), out: Any = None, **fields: Any
    ) -> int:
        """`out`: type and scale of the result, or None for f32."""
        shape = (filters, self.maps[x][0] // fields.get("groups", 1), *kernel)
        if "weight" not in fields:
            weight = np.clip(np.rint(self.rng.standard_normal(shape) * 50), -127, 127)
            fields["weight"] = self.constant(weight, np.int8)
        if "scale" not in fields:
            usual = self.quantised[x][1] / 50 / math.sqrt(math.prod(shape[1:]))
            fields["scale"] = self.constant(usual * self.rng.uniform(0.5, 2, filters))
        fields.setdefault("bias", self.normal(filters, scale=0.3))
        return self.typed(self.any_convolution(QConv, x, filters, kernel, **fields), out)

    def quantize(self, x: int, kind: str, scale: float) -> int:
        return self.typed(self.append(Quantize, self.maps[x], x=x), (kind, scale))

    def dequantize(self, x: int) -> int:
        return self.append(Dequantize, self.maps[x], x=x)

    def typed(self, index: int, how: tuple[Any, float] | None) -> int:
        """Give a map a type and a scale, or none."""
        if how is not None:
            self.quantised[index] = how[0], float(np.float32(how[1]))
        return index

    def pool(self, x: int, kind: str, out: tuple[int, int] = (1, 1), **fields: Any) -> int:
        """Without a kernel: adaptive. `out` is then the size, otherwise ignored."""
        c, *size = self.maps[x]
        if "kernel" not in fields:
            return self.append(Pool, (c, *out), x=x, kind=kind, adaptive=True, **fields)
        ceil_mode = fields.pop("ceil_mode", False)
        rows, columns = (
            pooled(
                size[i],
                fields["kernel"][i],
                fields.get("stride", (1, 1))[i],
                fields.get("padding", (0, 0))[i],
                ceil_mode,
            )
            for i in (0, 1)
        )
        return self.append(Pool, (c, rows, columns), x=x, kind=kind, **fields)

    def affine(self, x: int, **fields: Any) -> int:
        c = self.maps[x][0]
        names = {"scale": self.normal(c), "shift": self.normal(c, scale=0.3)}
        return self.append(Affine, self.maps[x], x=x, **names, **fields)

    def activate(self, x: int, act: str) -> int:
        return self.append(Activate, self.maps[x], x=x, act=act)

    def combine(self, a: int, b: int, kind: str, **fields: Any) -> int:
        return self.append(Combine, self.maps[a], a=a, b=b, kind=kind, **fields)

    def gather(self, xs: tuple[int, ...], index: Any) -> int:
        shape = (len(index), *self.maps[xs[0]][1:])
        out = self.append(Gather, shape, xs=xs, index=self.constant(index, np.int32))
        return self.typed(out, self.quantised.get(xs[0]))

    def flatten(self, x: int) -> int:
        shape = (math.prod(self.maps[x]), 1, 1)
        return self.typed(self.append(Flatten, shape, x=x), self.quantised.get(x))

    def silence(self, x: int, mask: int) -> int:
        out = self.append(Silence, self.maps[x], x=x, mask=mask)
        return self.typed(out, self.quantised.get(x))

    def gate(self, channels: int, prior: int | None = None) -> int:
        gate = Gate(unit=f"unit{len(self.gates)}", channels=channels, prior=prior or channels)
        self.gates.append(gate)
        return len(self.gates) - 1

    def fixed(self, value: Any) -> int:
        mask = self.gate(len(value))
        self.append(Fixed, mask=mask, value=self.constant(value, np.uint8))
        return mask

    def predict(
        self, features: tuple[int, ...], channels: int, *, rank: int = 0, **fields: Any
    ) -> int:
        mask, width = self.gate(channels, channels + int(self.rng.integers(3))), 0
        width = sum(self.maps[f][0] for f in features)
        if rank:
            fields.setdefault("reduce", self.normal(rank, width, scale=width**-0.5))
            width = rank
        scale = 4.0 if fields.get("softmax") else 2 * width**-0.5
        fields.setdefault("weight", self.normal(channels, width, scale=scale))
        fields.setdefault("bias", self.normal(channels, scale=0.5))
        self.append(Predict, features=features, mask=mask, **fields)
        return mask


def pooled(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    room = size + 2 * padding - kernel
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - ((count - 1) * stride >= size + padding)


def mask(kind: str, samples: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """(samples, channels) bool; each sample has its own."""
    if kind in ("all", "none"):
        return np.full((samples, channels), kind == "all")
    if kind == "random":
        return rng.random((samples, channels)) < rng.uniform(0.1, 0.9)
    chosen = np.arange(channels) == rng.integers(channels, size=(samples, 1))
    return chosen if kind == "one" else ~chosen


def random_program(seed: int, *, steps: int | None = None) -> Program:
    """A valid program of all kinds of operations; its numbers stay near one."""
    return RandomBuilder(seed).program_of(steps)


def random_integer_program(seed: int) -> Program:
    """A valid program that has an eight-bit form throughout, its predictors aside."""
    return _RandomInteger(seed).program_of(None)


class RandomBuilder(Builder):
    steps: tuple[tuple[str, int], ...] = (
        ("any_conv", 8), ("residual", 3), ("any_pool", 2), ("pointwise", 1), ("mixture", 2),
        ("any_gather", 2), ("squeeze", 1), ("any_silence", 2),
    )  # fmt: skip
    acts: tuple[str, ...] = ACTS
    posts: tuple[str, ...] = ("none", "relu", "relu6", "silu", "leaky_relu", "tanh")

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        most = 40 if rng.random() < 0.1 else 17
        rows, columns = (int(n) for n in rng.integers(1, most + 1, size=2))
        super().__init__((self.channels(rng), rows, columns), seed=seed)

    def program_of(self, steps: int | None) -> Program:
        for _ in range(steps or int(self.rng.integers(2, 13))):
            names, weights = zip(*self.steps, strict=True)
            step = names[self.rng.choice(len(names), p=np.array(weights) / sum(weights))]
            getattr(self, step)(self.recent())
        self.end(len(self.maps) - 1)
        return self.program()

    @staticmethod
    def channels(rng: np.random.Generator) -> int:
        return int(rng.choice((1, 2, 3, 4, 6, 7, 8, 12, 16, 17, 24, 32, 33, 48, 65)))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def choose(self, values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def recent(self) -> int:
        """One of the last maps, mostly the very last."""
        back = min(int(self.rng.geometric(0.6)), len(self.maps))
        return len(self.maps) - back

    def act(self) -> str:
        return str(self.choose(self.acts))

    def mask(self, x: int, channels: int) -> int:
        """A mask of some channels: one that exists, or a new one that looks at x."""
        known = [i for i, gate in enumerate(self.gates) if gate.channels == channels]
        if known and self.chance(0.4):
            return int(self.choose(known))
        if self.chance(0.2):
            return self.fixed(mask(self.choose(MASKS), 1, channels, self.rng)[0])
        features = [self.pool(x, self.choose(("max", "mean")))]
        if self.chance(0.3):
            features.append(self.pool(self.recent(), "mean"))
        rank = self.choose((0, 0, 1, 5))
        threshold = float(self.choose((0.0, 0.25)))
        options = {"softmax": self.chance(0.3), "threshold": threshold}
        return self.predict(tuple(features), channels, rank=rank, **options)

    def maybe_mask(self, x: int, channels: int, share: float) -> int | None:
        return self.mask(x, channels) if self.chance(share) else None

    def any_conv(self, x: int) -> None:
        c, h, w = self.maps[x]
        kernel = (h, w) if self.chance(0.1) else self.choose(KERNELS)
        groups, filters = 1, self.channels(self.rng)
        if self.chance(0.25):
            groups, filters = c, c * self.choose((1, 1, 1, 2, 3))  # depthwise
        elif self.chance(0.3):
            groups = int(self.choose([n for n in range(1, c + 1) if c % n == 0]))
            filters = groups * self.choose((1, 2, 4))
        stride = self.choose(((1, 1), (1, 1), (2, 2), (3, 3), (1, 2), (3, 2)))
        dilation = self.choose(((1, 1), (1, 1), (1, 1), (2, 2), (1, 3)))
        if self.chance(0.05):
            stride, dilation = (
                self.choose(((5, 4), (100, 1), (16, 16))),
                self.choose(((5, 2), (1, 9))),
            )
        reach = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
        same = (reach[0] // 2, reach[1] // 2, reach[0] - reach[0] // 2, reach[1] - reach[1] // 2)
        most = 12 if self.chance(0.1) else 3
        odd = tuple(int(n) for n in self.rng.integers(0, most + 1, size=4))
        padding = self.choose((same, same, (0, 0, 0, 0), odd))
        if h + padding[0] + padding[2] <= reach[0] or w + padding[1] + padding[3] <= reach[1]:
            padding = same
        self.conv(
            x, filters, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
            act=self.act(), mask=self.maybe_mask(x, filters, 0.6),
            after=self.maybe_mask(x, filters, 0.15),
        )  # fmt: skip

    def residual(self, x: int) -> None:
        """A convolution that adds another map."""
        add = self.recent()
        filters, rows, columns = self.maps[add]
        _, h, w = self.maps[x]
        if (h, w) != (rows, columns):
            x, h, w = add, rows, columns
        kernel = self.choose(((1, 1), (3, 3), (3, 3), (5, 5), (1, 7)))
        near = (kernel[0] // 2, kernel[1] // 2)
        self.conv(
            x, filters, kernel, padding=(*near, *near), act=self.choose(("none", self.act())),
            mask=self.maybe_mask(x, filters, 0.7), add=add,
            post=self.choose(self.posts),
            after=self.maybe_mask(x, filters, 0.4),
        )  # fmt: skip

    def any_pool(self, x: int) -> None:
        _, *size = self.maps[x]
        kind = self.choose(("max", "mean"))
        if self.chance(0.3):
            out = tuple(int(n) for n in self.rng.integers(1, 9, size=2))
            self.pool(x, kind, out)
            return
        most = 12 if self.chance(0.1) else 4
        kernel = tuple(int(self.rng.integers(1, min(s, most) + 1)) for s in size)
        self.pool(
            x, kind, kernel=kernel, stride=tuple(int(n) for n in self.rng.integers(1, 4, size=2)),
            padding=tuple(int(self.rng.integers(0, k)) for k in kernel),
            include_padding=self.chance(0.5), ceil_mode=self.chance(0.5),
        )  # fmt: skip

    def pointwise(self, x: int) -> None:
        if self.chance(0.5):
            self.affine(x, act=self.act())
        else:
            self.activate(x, self.act())

    def mixture(self, x: int) -> None:
        """A sum or product of two maps."""
        shape = self.maps[x]
        same = [i for i, other in enumerate(self.maps) if other in (shape, (shape[0], 1, 1))]
        self.combine(x, int(self.choose(same)), self.choose(("add", "mul")), act=self.act())

    def any_gather(self, x: int) -> None:
        """A concatenation, a shuffle or a choice of channels."""
        fit = [i for i, shape in enumerate(self.maps) if shape[1:] == self.maps[x][1:]]
        xs = (x, *(int(self.choose(fit)) for _ in range(self.rng.integers(3))))
        total = sum(self.maps[i][0] for i in xs)
        index = np.arange(total)
        if self.chance(0.5):
            index = self.rng.integers(-1, total, size=self.rng.integers(1, min(total, 80) + 1))
        self.gather(xs, self.rng.permutation(index)[:80] if self.chance(0.5) else index[:80])

    def squeeze(self, x: int) -> None:
        """Squeeze and excitation."""
        c = self.maps[x][0]
        small = self.conv(self.pool(x, "mean"), max(c // 4, 1), act="relu")
        scale = self.conv(small, c, act=self.choose(("sigmoid", "hardsigmoid")))
        self.combine(x, scale, "mul")

    def any_silence(self, x: int) -> None:
        self.silence(x, self.mask(x, self.maps[x][0]))

    def end(self, x: int) -> None:
        """Sometimes a classifier."""
        if self.chance(0.5):
            return
        if math.prod(self.maps[x]) <= 2000 and self.chance(0.5):
            x = self.flatten(x)
        elif self.chance(0.7):
            x = self.pool(x, self.choose(("mean", "max")))
        self.conv(x, 5, self.maps[x][1:])


class _RandomInteger(RandomBuilder):
    steps = (
        ("any_conv", 8), ("residual", 4), ("any_maximum", 2), ("any_sum", 2), ("any_gather", 2),
        ("any_silence", 2),
    )  # fmt: skip
    acts = ("none", "relu", "relu6", "leaky_relu", "hardswish")
    posts = acts

    def any_maximum(self, x: int) -> None:
        kernel = tuple(int(self.rng.integers(1, min(s, 4) + 1)) for s in self.maps[x][1:])
        self.pool(
            x, "max", kernel=kernel, stride=tuple(int(n) for n in self.rng.integers(1, 4, size=2)),
            padding=tuple(int(self.rng.integers(0, k)) for k in kernel),
            ceil_mode=self.chance(0.5),
        )  # fmt: skip

    def any_sum(self, x: int) -> None:
        shape = self.maps[x]
        same = [i for i, other in enumerate(self.maps) if other in (shape, (shape[0], 1, 1))]
        self.combine(x, int(self.choose(same)), "add", act=self.act())
