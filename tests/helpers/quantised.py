"""Random programs on maps of eight bits, whose every bit is defined."""

from typing import Any

import numpy as np

from ftwt.runtime import Program
from ftwt.runtime.program import EXACT
from programs import RandomBuilder


def random_quantised(seed: int, *, steps: int | None = None) -> Program:
    """A valid program of all operations on quantised maps.

    What is f32 in it is computed without sums of reals, which engines round in different orders.
    Only predictors sum; a test forces masks, or leaves out programs where they nearly decide
    otherwise.
    """
    return _Quantised(seed).program_of(steps)


class _Quantised(RandomBuilder):
    """What the base class appends, on quantised maps."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.whole(0)

    def program(self, output: int | None = None, **fields: Any) -> Program:
        last = len(self.maps) - 1 if output is None else output
        if last in self.quantised or last == 0:
            output = self.dequantize(self.whole(last))
        return super().program(output, **fields)

    def kind(self) -> tuple[str, float]:
        kind = str(self.choose(("u8", "s8")))
        return kind, float(self.rng.uniform(1, 4) / (255 if kind == "u8" else 127))

    def maybe_kind(self) -> tuple[str, float] | None:
        return self.kind() if self.chance(0.85) else None

    def whole(self, x: int) -> int:
        """A map of eight bits: x, or what it becomes."""
        return x if x in self.quantised else self.quantize(x, *self.kind())

    def real(self, x: int) -> int:
        return self.dequantize(x) if x in self.quantised else x

    def act(self) -> str:
        return str(self.choose(EXACT))

    def conv(self, x: int, filters: int, kernel: tuple[int, int] = (1, 1), **fields: Any) -> int:
        for field in ("act", "post"):
            if fields.get(field, "none") not in EXACT:
                fields[field] = self.act()
        return self.qconv(self.whole(x), filters, kernel, self.maybe_kind(), **fields)

    def pool(self, x: int, kind: str, out: tuple[int, int] = (1, 1), **fields: Any) -> int:
        everywhere = "kernel" not in fields and out == (1, 1)
        if kind == "mean" and not everywhere:
            kind = "max"
        x = self.whole(x)
        how = None if everywhere and (kind == "mean" or self.chance(0.5)) else self.quantised[x]
        return self.typed(super().pool(x, kind, out, **fields), how)

    def predict(self, features: Any, channels: int, **fields: Any) -> int:
        return super().predict(tuple(self.real(x) for x in features), channels, **fields)

    def affine(self, x: int, **fields: Any) -> int:
        return self.activate(x, self.act())

    def activate(self, x: int, act: str) -> int:
        return self.whole(super().activate(self.real(x), str(self.choose(("relu", "relu6")))))

    def combine(self, a: int, b: int, kind: str, **fields: Any) -> int:
        if kind == "mul":
            act = str(self.choose(("none", "relu", "relu6")))
            return super().combine(self.real(a), self.real(b), kind, act=act)
        a, b, fields["act"] = self.whole(a), self.whole(b), self.act()
        return self.typed(super().combine(a, b, kind, **fields), self.kind())

    def gather(self, xs: tuple[int, ...], index: Any) -> int:
        how = self.quantised[self.whole_of(xs)]
        alike = tuple(
            x if self.quantised.get(x) == how else self.quantize(self.real(x), *how) for x in xs
        )
        return super().gather(alike, index)

    def whole_of(self, xs: tuple[int, ...]) -> int:
        return next((x for x in xs if x in self.quantised), None) or self.whole(xs[0])


def images(seed: int, program: Program, samples: int) -> np.ndarray:
    """Images whose values reach beyond what eight bits hold."""
    rng = np.random.default_rng([seed, 2])
    scale = float(rng.choice((0.3, 1.0, 4.0)))
    return (rng.standard_normal((samples, *program.maps[0])) * scale).astype(np.float32)
