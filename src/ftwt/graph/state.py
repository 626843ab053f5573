"""What a forward pass leaves behind in a network's modules: kept away, or noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class State:
    """What a network's modules hold: their attributes, and what dicts, lists and sets hold there.

    Args:
        model: Whose modules are looked at as they are now.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = [(name, vars(part), dict(vars(part))) for name, part in model.named_modules()]
        held = [value for _, _, before in self._parts for value in before.values()]
        self._filled = [(v, v.copy()) for v in held if isinstance(v, dict | list | set)]
        held += [
            v for _, before in self._filled if isinstance(before, dict) for v in before.values()
        ]
        tensors = [v for v in held if isinstance(v, Tensor) and not v.is_inference()]
        self._versions = [(tensor, tensor._version) for tensor in tensors]

    def changed(self) -> list[str]:
        """Name what is another thing now, holds something else, or was changed in place."""
        moved = {id(value) for value, version in self._versions if value._version != version}
        moved |= {id(now) for now, before in self._filled if not _same(now, before)}
        contents = {id(now): before for now, before in self._filled}
        names = []
        for place, now, before in self._parts:
            own = dict(before)
            for hidden in ("_buffers", "_parameters", "_modules"):  # attributes, to who reads them
                now = {**now, **now[hidden]}
                own |= contents[id(own.pop(hidden))]
                now.pop(hidden)
            names += [
                f"{place}.{key}".lstrip(".")
                for key in {**own, **now}
                if now.get(key) is not own.get(key) or id(now.get(key)) in moved
            ]
        return names

    def restore(self) -> None:
        """Give the modules back what they had."""
        for _, now, before in self._parts:
            now.clear()
            now.update(before)
        for value, content in self._filled:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Give each module back the attributes that it had, and what was in its dicts and lists."""
    state = State(model)
    try:
        yield
    finally:
        state.restore()


def _same(now: Any, before: Any) -> bool:
    """Whether a container holds the very same things."""
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(key in before and value is before[key] for key, value in now.items())
    return now == before if isinstance(now, set) else all(map(_is, now, before))


def _is(first: Any, second: Any) -> bool:
    return first is second
