"""A network that keeps something from one call to the next, or asks for the time, is refused."""

from __future__ import annotations

import datetime
import time
from datetime import date
from time import perf_counter_ns, time_ns

import pytest
import torch
from torch import Tensor, nn

import ftwt
from ftwt.graph.trace import trace

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, and what a forward may count in."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()
        )
        self.calls, self.log, self.found = 0, list[int](), {"calls": 0}
        self.register_buffer("steps", torch.zeros(()))
        self.tensor = torch.zeros(())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


class Number(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Length(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.log.append(0)
        return super().forward(x) * len(self.log)


class InDict(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.found["calls"] += 1
        return super().forward(x) * self.found["calls"]


class Buffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x) * self.steps


class NewBuffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        return super().forward(x) * self.steps


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.tensor.add_(1)
        return super().forward(x) * self.tensor


class Average(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.steps.lerp_(y.mean(), 0.5)
        return y - self.steps


class Deep(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body.append(Number())
        self.body[-1].body = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


COUNTING = {
    Number: "calls", Length: "log", InDict: "found", Buffer: "steps", NewBuffer: "steps",
    InPlace: "tensor", Average: "steps", Deep: "body.4.calls",
}  # fmt: skip


@pytest.mark.parametrize("kind", COUNTING)
def test_a_network_that_counts_its_calls_is_refused(kind: type[Net]) -> None:
    said = f"something else when it is called again: a call changes {COUNTING[kind]}, and"
    for make in (ftwt.convert, ftwt.compile):
        with pytest.raises(ValueError, match=said):
            make(kind(), IMAGES)


class Caching(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last, self.steps = self.calls + 1, x, self.steps + 1
        self.log.append(self.calls)
        return super().forward(x) + torch.rand(1) * 0


def test_what_is_left_behind_and_changes_nothing_is_no_reason() -> None:
    model = Caching()
    network = trace(model, (IMAGES,))
    with torch.no_grad():
        assert torch.equal(network(IMAGES), model(IMAGES))
    assert model.calls == 1 and len(model.log) == 1  # of the call above


def test_a_network_that_leaves_nothing_is_called_once_more_for_nothing(monkeypatch) -> None:
    calls: list[int] = []
    forward = Net.forward

    def counted(self: Net, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            calls.append(1)
        return forward(self, x)

    monkeypatch.setattr(Net, "forward", counted)
    trace(Net(), (IMAGES,))
    assert len(calls) == 1
    trace(Caching(), (IMAGES,))
    assert len(calls) == 3


class Hour(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + time.time() // 3600 % 24 / 24


class Imported(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.tensor(time_ns() % 86_400_000_000_000 / 1e14)


class Daylight(Net):
    """Another way through the network at another time."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.relu() if time.monotonic() // 10**7 % 2 else y.tanh()


class Today(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + date.today().toordinal() / 1e6


class Evening(Net):
    def forward(self, x: Tensor) -> Tensor:
        now = datetime.datetime.now(datetime.UTC)
        assert isinstance(now, datetime.datetime)
        return super().forward(x) * now.hour


@pytest.mark.parametrize("kind", [Hour, Imported, Daylight, Today, Evening])
def test_a_network_that_asks_for_the_time_is_refused(kind: type[Net]) -> None:
    for make in (ftwt.convert, ftwt.compile):
        with pytest.raises(ValueError, match=r"it asks for the time \((date)?time\.\w+"):
            make(kind(), IMAGES)


def test_a_network_that_times_itself_is_not_refused() -> None:
    class Timed(Net):
        def forward(self, x: Tensor) -> Tensor:
            start = perf_counter_ns()
            y = super().forward(x)
            self.took = perf_counter_ns() - start
            return y

    clocks = time.time, perf_counter_ns, datetime.datetime, date
    assert trace(Timed(), (IMAGES,)) is not None
    assert clocks == (time.time, perf_counter_ns, datetime.datetime, date)
