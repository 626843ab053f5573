"""Several processes do together what one does: figures, losses, stops, and who may write."""

import json
import os
import re
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from ftwt import estimate, evaluate, repair
from ftwt.budget.calibration import calibrate
from ftwt.cli import main
from ftwt.config import FixedConfig, TrainConfig
from ftwt.data import Batches
from ftwt.fitting.columns import rank_filters
from ftwt.fitting.masks import mean_saliency
from ftwt.fitting.predictors import fit_predictors
from ftwt.networks.pretrained import load_tensors
from ftwt.processes import explained, first, gathered, processes, shard
from ftwt.pruning.second_look import SecondLook, opened
from ftwt.runs.fixed import looking
from ftwt.training.batchnorm import synchronized_batch_norm
from ftwt.training.interrupts import requests
from ftwt.training.loop import train
from toys import CONFIG, fit, run_python, same, untimed

UNEVEN = 49  # images: in batches of 16 the last one is a single image, which one process gets
SAME = 1e-4  # largest relative difference of losses: rounding, grown over 32 steps

# Batch norm that learns does so from all images together, or not at all; no dropout, whose draws
# are each process's own.
WHOLE = {
    "frozen": replace(
        CONFIG, epochs=3, freeze_batchnorm=True, predictor_warmup_steps=4, target_reduction=0.3
    ),
    "synchronized": replace(
        CONFIG, epochs=3, lr=0.03, sync_batchnorm=True, anneal_epochs=1, ema_decay=0.9, clip_norm=5
    ),
    "in parts": replace(CONFIG, epochs=3, freeze_batchnorm=True, accumulation=2),
}  # fmt: skip
HEADS = {"frozen": "softmax", "synchronized": "standardized", "in parts": "softmax"}


def launch(world: int, script: str, *arguments: Any, timeout: float = 120, **variables: str) -> Any:
    """Run a script of these tests in so many processes."""
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    Path("script.py").write_text(f"{here}\nfrom test_processes import *\n{script}", "utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    return run_python(*torchrun, "script.py", *map(str, arguments), timeout=timeout, **variables)


def gates() -> Any:
    """The toy network with gates that differ from image to image."""
    dynamic = toys.dynamic(dropout=0.0).eval()
    torch.manual_seed(1)
    for predictor in dynamic.predictors.values():
        torch.nn.init.normal_(predictor.linear.weight, std=2.0)
    return dynamic


def exact_figures() -> dict[str, Any]:
    """What this process is told of images that it shares with the others, if there are any."""
    state, part = processes(), shard()
    uneven = Batches(toys.images(UNEVEN, seed=1), batch_size=16, shard=part)
    dynamic = gates()
    options = {"images": 40, "accelerator": state}
    curve = estimate(toys.Toy(), uneven, min_gain=-1.0, **options)
    rates = dynamic.firing_rates(uneven, accelerator=state)
    twin = dynamic.freeze(uneven, accelerator=state)
    both = SecondLook([twin, opened(dynamic)], [0.0])
    least = float(twin.macs(twin.with_fixed({})).reduction) / 2
    asked = FixedConfig(0.9, "shared", least)
    look = looking(asked, both, toys.Toy(), uneven)
    return json.loads(
        json.dumps(
            {
                "evaluation": evaluate(dynamic, uneven, accelerator=state).to_json(),
                "plain": evaluate(toys.Toy(), uneven, accelerator=state).to_json(),
                "estimate": {k: v for k, v in curve.to_json().items() if k != "provenance"},
                "allocation": curve.allocate(reduction=0.2).r,
                "rates": {name: rate.tolist() for name, rate in rates.items()},
                "look": [look.images, look.shares, round(look.thresholds[0], 5)],
                "twin": {name: gate.mask.tolist() for name, gate in twin.gates.items()},
                "calibration": asdict(calibrate(dynamic, uneven, reduction=0.3, **options)),
            }
        )
    )


def fitted_figures() -> dict[str, Any]:
    """What is fitted to images that the first process has all of."""
    few = Batches(toys.images(UNEVEN, seed=1), batch_size=10 * shard()[1], shard=shard())
    options = {"images": 10, "accelerator": processes()}
    saliency = mean_saliency(gates(), few, **options)
    return json.loads(
        json.dumps(
            {
                "saliency": {name: mean.tolist() for name, mean in saliency.items()},
                "predictors": asdict(fit_predictors(gates(), few, **options)),
            }
        )
    )


def repairs() -> list[list[float]]:
    """Images repaired with, errors of layers and of units; one process keeps no feature maps."""
    rank, world = shard()
    found = []
    for poor, size, count in ((1, 16, 40), (0, 10 * world, 10)):  # the first has all of the ten
        batches = Batches(toys.images(UNEVEN, seed=1), batch_size=size, shard=(rank, world))
        options = {"images": count, "accelerator": processes()}
        fixed = gates().fix(dict.fromkeys(gates().gates, torch.arange(8) > 2))
        with pytest.MonkeyPatch.context() as patch:
            if rank == poor:
                patch.setattr("ftwt.fitting.passes.room", lambda *_: 0)
            told = repair(fixed, batches, dense=toys.Toy(), **options)
            lost = rank_filters(gates(), batches, **options).lost.values()
        left = [layer.after for layer in told.layers]
        found.append([told.images, *left, *(float(each[-1]) for each in lost)])
    return found


def curves(folder: Path) -> dict[str, Any]:
    """The losses and figures of short runs, shared with the other processes."""
    found: dict[str, Any] = {}
    for name, config in WHOLE.items():
        model = toys.dynamic(head=HEADS[name], dropout=0.0)
        batches = [toys.batches(train=train, shard=shard()) for train in (True, False)]
        result = train(model, *batches, config, output=folder / name, progress=False)
        found[name] = [
            [e.loss, e.val_loss, e.mask_loss, e.accuracy, e.val_accuracy] for e in result.history
        ]
    data = torch.utils.data.TensorDataset(
        *map(torch.cat, zip(*toys.batches(train=True), strict=True))
    )
    uneven = torch.utils.data.Subset(data, range(UNEVEN))
    loaders = [torch.utils.data.DataLoader(each, batch_size=16) for each in (data, uneven)]
    still = replace(CONFIG, epochs=1, lr=0.0, freeze_batchnorm=True)
    found["loader"] = train(toys.Toy(), *loaders, still, progress=False).evaluation
    return found


BOTH = """
import sys
told = {"exact": exact_figures(), "fitted": fitted_figures(), "repairs": repairs()}
told["curves"] = curves(Path(sys.argv[1]))
Path(f"{shard()[0]}.json").write_text(json.dumps(told))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_do_what_one_does(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = launch(world, BOTH, "many", timeout=240, FTWT_TIMEOUT_S="60")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "find_unused_parameters" not in done.stderr
    exact, fitted, one = exact_figures(), fitted_figures(), curves(Path("one"))
    repaired = repairs()
    largest = 0.0
    for rank in range(world):
        told = json.loads(Path(f"{rank}.json").read_text())
        assert told["exact"] == exact  # to the last bit, on all of them
        assert told["fitted"] == fitted
        for ours, theirs in zip(repaired, told["repairs"], strict=True):
            assert theirs == pytest.approx(ours, rel=1e-4)
        loader = told["curves"]["loader"]
        assert loader["images"] == UNEVEN == one["loader"]["images"]
        assert loader["loss"] == pytest.approx(one["loader"]["loss"], rel=1e-6)
        for name in WHOLE:
            for alone, shared in zip(one[name], told["curves"][name], strict=True):
                assert (alone[2] is None) == (shared[2] is None)
                pairs = [(a, b) for a, b in zip(alone[:3], shared[:3], strict=True) if a]
                largest = max(largest, *(abs(a - b) / a for a, b in pairs))
                assert shared[3:] == pytest.approx(alone[3:], abs=0.02)  # an image or two
    record_property("largest relative difference of losses", largest)
    print(f"{world} processes: losses differ by at most {largest:.2g}")
    assert largest < SAME
    for name in WHOLE:
        steps = [line["step"] for line in untimed(Path("many") / name)]
        assert steps == [line["step"] for line in untimed(Path("one") / name)]
        assert load_tensors(Path("many") / name / "checkpoint.safetensors")[1]["step"] == 24


class Stopping:
    """This process's training batches; a signal ends one process, or asks it to, at a step."""

    def __init__(self, step: int, number: int, *, rank: int) -> None:
        self.batches = toys.batches(train=True, shard=shard())
        self.batch_size, self.number = self.batches.batch_size, number
        self.left = step if shard()[0] == rank else 0

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def iterate(self, start: int) -> Any:
        for batch in self.batches.iterate(start):
            self.left -= 1
            if self.left == 0:
                Path("signalled").write_text(str(time.time()))
                if self.number == signal.SIGTERM:  # as a cluster does it: all are told, some twice
                    os.kill(os.getppid(), self.number)
                os.kill(os.getpid(), self.number)
            yield batch


SHARED = replace(WHOLE["synchronized"], target_reduction=0.3, cooldown=0.75, epochs=4)


def shared(output: str, *, resume: bool, batches: Any = None) -> Any:
    """A run that any number of processes can share, and go on with."""
    validation = toys.batches(train=False, shard=shard())
    return train(
        toys.dynamic(dropout=0.0),
        batches or toys.batches(train=True, shard=shard()),
        validation,
        SHARED,
        output=output,
        resume=resume,
        progress=False,
    )


STOPPED = """
import sys
from ftwt.training.loop import Interrupted
batches = Stopping(21, int(sys.argv[2]), rank=1)
try:
    shared(sys.argv[1], resume=False, batches=batches)
except Interrupted as stop:
    sys.exit(str(stop))
"""
RESUMED = "import sys\nshared(sys.argv[1], resume=True)\ntorch.distributed.destroy_process_group()"


def compare(one: str, parts: str) -> float:
    """The largest relative difference of two runs' losses, epoch by epoch."""
    runs = [json.loads((Path(run) / "result.json").read_text()) for run in (one, parts)]
    epochs = zip(*(run["history"] for run in runs), strict=True)
    pairs = [(a[key], b[key]) for a, b in epochs for key in ("loss", "val_loss", "reduction")]
    return max(abs(a - b) / a for a, b in pairs)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_the_reason_and_another_number_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = launch(2, STOPPED, "run", int(signal.SIGKILL))
    seconds = time.time() - float(Path("signalled").read_text())
    print(f"over {seconds:.1f} s after the kill")
    assert done.returncode != 0 and seconds < 60
    assert "Signal 9 (SIGKILL) received by PID" in done.stderr
    assert load_tensors("run/checkpoint.safetensors")[1]["step"] == 16
    shared("run", resume=True)
    shared("one", resume=False)
    assert compare("one", "run") < SAME


@pytest.mark.slow
def test_four_processes_are_stopped_in_mid_epoch_and_two_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = launch(4, STOPPED, "run", int(signal.SIGTERM), timeout=240)
    assert "stopped after step 22 of 32: saved in run" in done.stderr
    assert load_tensors("run/checkpoint.safetensors")[1]["step"] == 22
    done = launch(2, RESUMED, "run", timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    shared("one", resume=False)
    largest = compare("one", "run")
    print(f"4 -> 2: losses differ by at most {largest:.2g}")
    assert largest < SAME


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_after_the_time_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = launch(2, STOPPED, "run", int(signal.SIGSTOP), timeout=240, FTWT_TIMEOUT_S="10")
    seconds = time.time() - float(Path("signalled").read_text())
    print(f"over {seconds:.1f} s after it hung")
    assert done.returncode != 0 and 10 < seconds < 100
    assert "Timed out waiting 10000ms" in done.stderr


def test_the_time_to_wait_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("FTWT_TIMEOUT_S", wrong)
        with pytest.raises(ValueError, match=f"FTWT_TIMEOUT_S='{wrong}' is no number of seconds"):
            processes()
    monkeypatch.setenv("FTWT_TIMEOUT_S", "5")
    assert processes().num_processes == 1


@pytest.mark.parametrize("accumulation", [2, 3, 16])
def test_a_batch_in_parts_teaches_what_it_teaches_whole(accumulation: int) -> None:
    config = replace(
        CONFIG,
        epochs=2,
        cooldown=1,
        freeze_batchnorm=True,
        predictor_warmup_steps=3,
        target_reduction=0.3,
        clip_norm=1.0,
    )
    # A standardized head would learn its statistics from each part.
    whole, parts = (toys.dynamic(head="softmax", dropout=0.0) for _ in range(2))
    results = [fit(whole, config), fit(parts, replace(config, accumulation=accumulation))]
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    for one, other in zip(*(result.history for result in results), strict=True):
        for name in ("loss", "task_loss", "mask_loss", "mask_accuracy", "reduction"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-3), name
        assert other.accuracy == pytest.approx(one.accuracy, abs=0.02)


def test_a_run_in_parts_is_counted_in_whole_steps_and_resumes(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, accumulation=4, ema_decay=0.9)
    whole, parts = toys.dynamic(), toys.dynamic()
    fit(whole, config, output=tmp_path / "whole")
    stopping = toys.Watched(11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt, match="after step 11 of 16"):
        train(parts, stopping, toys.batches(train=False), config, output=tmp_path / "parts")
    parts = toys.dynamic()
    fit(parts, config, output=tmp_path / "parts", resume=True)
    assert same(whole, parts)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


def test_ways_of_sharing_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"accumulation=17 is outside \[1, 16\]"):
        fit(toys.Toy(), replace(CONFIG, accumulation=17))
    with pytest.raises(ValueError, match="sync_batchnorm=True.*freeze_batchnorm=True"):
        TrainConfig(sync_batchnorm=True, freeze_batchnorm=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"ACCELERATE_USE_FSDP cuts the weights up.*\(DDP\)"):
        fit(toys.Toy())


def test_an_error_that_another_process_caused_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:6001")
    assert explained(lost) == str(lost)  # alone, it is about something else
    monkeypatch.setitem(processes()._shared_state, "num_processes", 2)
    assert re.search("another process of this run has ended.*--resume.*peer", explained(lost))
    assert explained(ValueError("lr=-1")) == "lr=-1"


def test_a_signal_that_comes_twice_is_one_request_where_it_is_passed_on() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job may ignore it
    for number in (signal.SIGINT, signal.SIGTERM):
        with requests(grace_s=60) as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert stop.is_set()
    for seconds in (0.0, 1e-9):
        with pytest.raises(KeyboardInterrupt), requests(grace_s=seconds) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.is_set()
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_one_process_has_the_whole_of_the_first_images() -> None:
    batches = toys.batches(train=False)
    found = list(first(batches, 40))
    assert [(place, len(part)) for place, part in found] == [(0, 32), (32, 8)]
    assert [place for place, _ in first(batches, 10**6)] == [0, 32]
    assert [place for place, _ in first(batches, 32)] == [0]
    assert not list(first([], 10))
    assert torch.equal(gathered(found[0][1]), found[0][1])


def test_an_empty_batch_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [torch.zeros(count, 3) for count in (5, 0, 4)]
    assert [(place, len(part)) for place, part in first(mine, 8)] == [(0, 5), (5, 3)]
    assert not list(first([torch.zeros(0, 3)] * 3, 8))

    others = iter([(2, 1), (0, 1), (0, 0), (0, 0)])  # of a process that has fewer batches
    monkeypatch.setattr(
        "ftwt.processes.gather", lambda own: torch.cat([own, torch.tensor([next(others)])])
    )
    two = SimpleNamespace(num_processes=2, process_index=0, device="cpu")
    found = [(place, len(part)) for place, part in first(mine, 100, accelerator=two)]
    assert found == [(0, 5), (7, 4)] and not list(others)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_over_one_process_is_batch_norm(
    shape: tuple[int, ...], affine: bool, tmp_path: Path
) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        values = torch.randn(shape, dtype=torch.float64) * 3 + 1
        outcomes = []
        for norm in (torch.nn.functional.batch_norm, synchronized_batch_norm):
            mean, var = torch.zeros(3).double(), torch.ones(3).double()
            factors = [torch.tensor([1.0, 2.0, -0.5]).double().requires_grad_() for _ in range(2)]
            weight, bias = factors if affine else (None, None)
            input = values.clone().requires_grad_()
            output = norm(input, mean, var, weight, bias, True, 0.3, 1e-3)
            (output * torch.arange(output.numel()).reshape(shape)).sum().backward()
            gradients: list[Tensor | None] = [input.grad]
            gradients += [factor.grad for factor in factors if affine]
            outcomes.append([output, mean, var, *gradients])
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(*outcomes, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


VERBS = """
import sys, tiny
from ftwt.cli import parse
tiny.register(Path(sys.argv[1]))
rank, replace_file, written = shard()[0], os.replace, []
os.replace = lambda *paths: (written.append(str(paths[1])), replace_file(*paths))
data = ["--dataset", "cifar10-embedded"]
held = [*data, "--validation", "399"]
told = {
    "estimate": parse("estimate", [tiny.NAME, *held, "--output", "estimate.json", "--json"])(),
    "evaluate": parse("evaluate", [tiny.NAME, *held, "--output", "evaluate.json", "--json"])(),
    "robustness": parse(
        "robustness",
        [tiny.NAME, *data, "--images", "41", "--corruptions", "gaussian_noise", "fog",
         "--severities", "3", "--output", "robustness", "--json"],
    )(),
}
if len(sys.argv) > 2:
    Path(f"{sys.argv[2]}{rank}.json").write_text(json.dumps([told, written]))
"""


@pytest.mark.slow
def test_verbs_share_their_work_and_the_first_process_writes(tiny_home: Path) -> None:
    leaving = "\nfrom ftwt.processes import leave\nleave()"
    for world in (1, 2):
        done = launch(world, VERBS + leaving, tiny_home, f"of{world}-", timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]

    def read(name: str) -> Any:
        told, written = json.loads(Path(name).read_text())
        for verb in ("estimate", "evaluate"):
            told[verb].pop("provenance")
        for network in told["robustness"].values():
            network.pop("provenance")
        return told, [os.path.relpath(path, tiny_home) for path in written]

    one, first, second = read("of1-0.json"), read("of2-0.json"), read("of2-1.json")
    assert one[0] == first[0] == second[0]
    assert one[1] == first[1] == ["estimate.json", "evaluate.json", "robustness/cifar10-tiny.json"]
    assert second[1] == []


ALONE = """
import sys
sys.exit(main(["bench", "cifar10-resnet20"]))
"""


@pytest.mark.slow
def test_verbs_for_one_process_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = launch(2, ALONE)
    assert done.returncode != 0
    assert "ftwt bench: it works in one process only; 2 were started: start one" in done.stderr
    assert main(["models"]) == 0  # the lists are nobody's work
