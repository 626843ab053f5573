"""Results are made of files by their own annotations."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from ftwt.records.fields import Amount, Count, Fields, Positive, Reduction, Share, Span


@dataclass(frozen=True)
class Part:
    name: str
    size: Positive
    some: Annotated[int, Span(0, "size")]


@dataclass(frozen=True)
class Whole:
    count: Count
    share: Share
    saved: Reduction | None
    times: tuple[Amount, ...]
    range: tuple[float, float]
    parts: tuple[Part, ...]
    first: Part
    notes: dict[str, Any] = field(default_factory=dict)
    word: str | None = None


PART = {"name": "a", "size": 4, "some": 4}
WHOLE = {
    "count": 0, "share": 0.5, "saved": -0.5, "times": [1, 2.5], "range": [-1, 1], "parts": [PART],
    "first": PART, "more": "is left alone",
}  # fmt: skip


def read(**changes: Any) -> Whole:
    return Fields(Path("a.json"), WHOLE | changes, fix="`ftwt x`").read(Whole)


def test_a_result_is_what_its_file_says() -> None:
    part = Part("a", 4, 4)
    expected = Whole(0, 0.5, -0.5, (1.0, 2.5), (-1.0, 1.0), (part,), part)
    assert read() == expected
    assert read(saved=None, notes={"k": 1}, word="w") == Whole(
        0, 0.5, None, (1.0, 2.5), (-1.0, 1.0), (part,), part, {"k": 1}, "w"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": -1}, r"`count` is -1; expected a whole number from 0 on"),
        ({"count": True}, r"`count` is True; expected a whole number"),
        ({"share": 1.5}, r"`share` is 1.5; expected a number in \[0, 1\]"),
        ({"saved": 1.1}, r"`saved` is 1.1; expected a number in \(-inf, 1\]"),
        ({"times": [1, -1]}, r"`times\[1\]` is -1; expected a number in \[0, inf\)"),
        ({"range": [1]}, r"`range` is a list of 1; expected 2 numbers"),
        ({"parts": [PART, PART | {"some": 5}]}, r"`parts\[1\].some` is 5; expected .* in \[0, 4\]"),
        ({"first": PART | {"name": 3}}, r"`first.name` is 3; expected text"),
        ({"notes": []}, r"`notes` is a list of 0; expected an object"),
        ({"word": 3}, r"`word` is 3; expected text; make the file again with `ftwt x`"),
    ],
)
def test_a_fault_is_told_by_file_and_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^a.json: {message}"):
        read(**changes)


def test_a_field_without_a_default_must_be_there() -> None:
    values = {name: value for name, value in WHOLE.items() if name != "times"}
    with pytest.raises(ValueError, match=r"a.json: `times` is missing"):
        Fields(Path("a.json"), values).read(Whole)
