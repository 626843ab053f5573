"""Tables of what was trained: accuracy, work, and what gates cost."""

from __future__ import annotations

import re
from statistics import mean, median
from typing import Any

from ftwt.records.contestants import by_candidate
from ftwt.report.published import COMPUTE_HOURS

from .files import ROOT, SHIPPED, grouped, read
from .layout import commits, million, origin, over, percent, table

CIFAR10_IMAGES = 50_000  # to train on, those held out among them
IMAGES_TRAINED = 45_000  # without those held out
PUBLISHED_EPOCHS = 200
QUEUE = "benchmarks/paper_rows.sweep"
SANDWICH = {
    "fixed-40": "fixed mask",
    "look-40": "fixed mask, the dense network looks again",
    "sandwich-40": "weights for both passes",
}


def demo() -> str:
    """The table of `make demo`."""
    result = read("results/demo.json")
    test, chosen = result["test"], result["pruned"]["kind"]
    times = {timing["name"]: timing["latency_ms"] for timing in result["latency"]["timings"]}
    ms = by_candidate(times, chosen)
    slow = {timing["name"]: timing["p99_ms"] for timing in result["latency"]["timings"]}
    late = by_candidate(slow, chosen)
    rivals = [name for name in ms if name not in test]
    asked = percent(result["pruned"]["asked"])
    rows = [
        ("top-1 accuracy, 1,000 test images", *(percent(one["top1"]) for one in test.values())),
        ("MACs executed per image", *(million(one) for one in test.values())),
        (
            f"reduction achieved, {asked} asked",
            *("" if kind == "dense" else percent(one["reduction"]) for kind, one in test.items()),
        ),
        ("an image on our engine, one thread, mean", *(f"{ms[kind]:.2f} ms" for kind in test)),
        ("the same, 99th percentile", *(f"{late[kind]:.2f} ms" for kind in test)),
        *((f"the mean, {name}", f"{ms[name]:.2f} ms", *[""] * (len(test) - 1)) for name in rivals),
    ]
    columns = ("", *(f"{kind}, chosen" if kind == chosen else kind for kind in test))
    return table(columns, rows) + origin("results/demo.json", result)


def baseline() -> str:
    """The dense network that everything starts from."""
    path = f"{SHIPPED}/cifar10-resnet20/run.json"
    result = read(path)
    training = result["training"]
    rows = [
        (
            "top-1, 10,000 test images, as shipped in half precision",
            percent(result["test"]["top1"], 2),
        ),
        ("top-1 in single precision", percent(result["shipped"]["trained"]["test"]["top1"], 2)),
        ("epochs", str(len(training["history"]))),
        ("MACs", million(result["test"])),
        ("training time", f"{training['seconds'] / 60:.0f} min"),
    ]
    return table(("ResNet-20, CIFAR-10", ""), rows) + origin(path, training)


def networks() -> str:
    """The trained networks that come with the package."""
    rows = []
    for path in sorted((ROOT / SHIPPED).glob("*/run.json")):
        folder = path.parent.relative_to(ROOT)
        result = read(str(path.relative_to(ROOT)))
        told, test, twin = result["shipped"], result["test"], result["shipped"]["twin"]
        gates = told["kind"] == "dynamic"
        predicted = result["predicted_reduction"] if gates else None
        rows.append(
            (
                f"[{told['name']}]({folder}/MODEL_CARD.md)",
                percent(test["top1"], 2),
                million(test),
                "" if predicted is None else percent(predicted, 2),
                "" if told["kind"] == "dense" else percent(test["reduction"], 2),
                "" if told["kind"] == "dense" else percent(test["published_reduction"], 2),
                "" if twin is None else percent(twin["test"]["top1"], 2),
                f"{told['weights_bytes'] / 1e6:.2f} MB",
            )
        )
    head = (
        "name", "top-1", "MACs an image", "predicted", "executed", "published",
        "top-1 of its static twin", "weights",
    )  # fmt: skip
    return table(head, rows) + f"\nFrom the `run.json` beside each card: [{SHIPPED}]({SHIPPED}).\n"


def study() -> str:
    """Both heads and the static twins, at two values of r."""
    runs = grouped("results/resnet20")
    return of_runs([run for run in runs if not run[0].startswith("budget")])


def thirty() -> str:
    """The study of 30 epochs: a budget of 40%, three seeds, and what stands beside it."""
    return of_runs(grouped("results/resnet20-40"), of="results/resnet20-40")


def five() -> str:
    """The same budget in 5 epochs."""
    return of_runs(grouped("results/resnet20-40-five"), of="results/resnet20-40-five")


def short() -> str:
    """VGG16-BN and MobileNetV1 at schedules far shorter than any that was published."""
    return of_runs(grouped("results/short"), of="results/short")


def cost() -> str:
    """What training costs on the machine of the result files, beside what the paper's took."""
    rows = []
    for name, seeds in [*grouped("results/resnet20-40"), *grouped("results/short")]:
        model = seeds[0]["config"]["model"]
        speed = median(seed["training"]["images_per_s"] for seed in seeds)
        epoch = (CIFAR10_IMAGES - seeds[0]["config"]["data"]["validation"]) / speed
        paper = COMPUTE_HOURS.get(("cifar10", model.removeprefix("cifar10-")))
        rows.append(
            (
                model.removeprefix("cifar10-"),
                re.sub(".*-", "", name),
                f"{speed:.0f}",
                f"{epoch / 60:.1f}",
                f"{PUBLISHED_EPOCHS * epoch / 3600:.1f}",
                f"{paper:.1f}" if paper and name.endswith("-dynamic") else "",
            )
        )
    head = (
        "network", "training", "images/s", "minutes an epoch", "200 epochs at this speed, hours",
        "the paper's, hours on 4 V100",
    )  # fmt: skip
    return table(head, rows) + (
        "\nOne thread for each run, beside other runs; images per second are those of the median "
        "epoch. 200 epochs are the paper's schedule, which was not run here.\n"
    )


def queue() -> str:
    """What the sweep of the paper's rows would take, at speeds measured in shorter runs."""
    measured: dict[tuple[str, str, bool], list[float]] = {}
    for folder in ("results/short", "results/gates-only"):
        for result in (seed for _, seeds in grouped(folder) for seed in seeds):
            speed = result["training"]["images_per_s"]
            measured.setdefault(trained(result), []).append(speed)
    rows, total = [], 0.0
    for line in (ROOT / QUEUE).read_text(encoding="utf-8").splitlines():
        if not line.startswith("train"):
            continue
        recipe, epochs = line.split()[1], int(re.findall(r"--epochs (\d+)", line)[0])
        found = re.match(r"(.*?)(-half)?-(baseline|r\d+|dynamic)", recipe)
        assert found is not None
        goal = found[3] == "dynamic"  # which a teacher helps to reach
        kind = {"baseline": "dense"}.get(found[3], "dynamic")
        kind = "twin" if "--twin-of" in line else kind
        model = found[1] + (found[2] or "").replace("-half", "-x0.5")
        speeds = measured.get((model, kind, goal), [])
        hours = epochs * IMAGES_TRAINED / median(speeds) / 3600 if speeds else 0.0
        total += hours
        rows.append(
            (
                line.split("--output runs/paper/")[1],
                f"`{recipe}`",
                str(epochs),
                f"{median(speeds):.0f}" if speeds else "",
                f"{hours:.1f}" if speeds else "not measured",
            )
        )
    head = ("run", "recipe", "epochs", "images/s", "hours")
    return table(head, rows) + (
        f"\n{total:.0f} hours in all without those not measured, one thread for each run: "
        f"[{QUEUE}]({QUEUE}). Speeds are the "
        "medians of runs of the same network and kind, taught or not, in "
        "[results/short](results/short) and [results/gates-only](results/gates-only): decoupled "
        "ones, with gates of our own.\n"
    )


def trained(result: dict[str, Any]) -> tuple[str, str, bool]:
    """The network of a run; whether it trained a twin, gates, or neither; whether it was taught."""
    config = result["config"]
    kind = "twin" if config["twin_of"] else "dynamic" if config["prune"] else "dense"
    return config["model"], kind, config["train"]["distillation"] > 0


def sandwich() -> str:
    """Weights for both passes beside a fixed mask, alone and with the dense second look."""
    runs = dict(grouped("results/sandwich"))
    if not runs:
        return "No results yet: `ftwt sweep benchmarks/sandwich.sweep`.\n"
    rows = []
    for name, label in SANDWICH.items():
        if name not in runs:
            rows.append((label, *["not finished"] * 8))
            continue
        (result, *_), look = runs[name], runs[name][0].get("second_look")
        alone = look or {
            "first_top1": result["test"]["top1"],
            "first_reduction": result["test"]["reduction"],
        }
        rows.append(
            (
                label,
                percent(result["test"]["top1"], 2),
                percent(result["validation"]["top1"], 2),
                percent(result["test"]["reduction"], 2),
                percent(alone["first_reduction"], 2),
                percent(alone["first_top1"], 2),
                percent(look["again"]) if look else "",
                percent(look["second_top1"], 2) if look else "",
                str(len(result["training"]["history"])),
            )
        )
    head = (
        "", "top-1", "on validation", "saved on average", "saved by the mask",
        "masked pass alone", "looked at again", "second pass alone", "epochs",
    )  # fmt: skip
    made = [seed["provenance"] for seeds in runs.values() for seed in seeds]
    return table(head, rows) + (
        f"\nOne seed; at {commits(made)}, {made[0]['hardware']['cpu']}, one thread each: "
        "[results/sandwich](results/sandwich).\n"
    )


def gates_only() -> str:
    """Gates put on a trained network whose weights stay, beside its static twin."""
    return of_runs(grouped("results/gates-only"), of="results/gates-only")


def candidates() -> str:
    """What was tried to move the frontier, each against the same first row."""
    runs = grouped("results/candidates")
    if not runs:
        return "No results yet: docs/results.md has the commands.\n"
    rows = []
    for name, seeds in sorted(runs, key=lambda run: (run[0] != "base", run[0])):
        if name.endswith("-twin"):
            continue
        twins = dict(runs).get(f"{name}-twin", [])
        gates = mean(seed["test"]["dynamism"]["sometimes"] for seed in seeds)
        command = re.sub(r" --(output|seed) \S+", "", seeds[0]["provenance"]["command"])
        rows.append(
            (
                name,
                f"`{command}`",
                over(seed["validation"]["top1"] for seed in seeds),
                over(seed["test"]["top1"] for seed in seeds),
                over(seed["test"]["reduction"] for seed in seeds),
                over(seed["test"]["mask_accuracy"] for seed in seeds),
                percent(gates, 0),
                over(seed["validation"]["top1"] for seed in twins) if twins else "",
                over(seed["test"]["top1"] for seed in twins) if twins else "",
            )
        )
    head = (
        "", "command", "top-1, validation", "top-1, test", "executed", "mask accuracy",
        "filters that fire sometimes", "its twin, validation", "its twin, test",
    )  # fmt: skip
    return table(head, rows) + "\nOne file each: [results/candidates](results/candidates).\n"


def of_runs(runs: list[tuple[str, list[dict[str, Any]]]], *, of: str = "") -> str:
    """A row for each run, its seeds together."""
    if not runs:
        return "No results yet: docs/results.md has the commands.\n"
    rows = []
    for name, seeds in runs:
        gates = [seed["test"]["dynamism"] for seed in seeds]
        shares = " / ".join(
            percent(mean(gate[key] for gate in gates), 0)
            for key in ("always", "sometimes", "never")
        )
        dynamic = seeds[0]["predicted_reduction"] is not None
        rows.append(
            (
                name,
                kind(seeds[0]),
                over(seed["test"]["top1"] for seed in seeds),
                over(seed["validation"]["top1"] for seed in seeds),
                over(seed["predicted_reduction"] for seed in seeds) if dynamic else "",
                over(seed["test"]["reduction"] for seed in seeds),
                over(seed["test"]["published_reduction"] for seed in seeds),
                over(seed["test"]["mask_accuracy"] for seed in seeds) if dynamic else "",
                shares,
                f"{mean(gate['entropy'] for gate in gates):.2f}",
                str(len(seeds[0]["training"]["history"])),
                str(len(seeds)),
                f"{mean(seed['training']['seconds'] for seed in seeds) / 3600:.2f}",
                f"{mean(seed['training']['images_per_s'] for seed in seeds):.0f}",
            )
        )
    head = (
        "run", "gates", "top-1", "on validation", "predicted", "executed", "published",
        "mask accuracy", "filters always / sometimes / never", "entropy, bits", "epochs", "seeds",
        "hours", "images/s",
    )  # fmt: skip
    made = [seed["provenance"] for _, seeds in runs for seed in seeds]
    files = f": [{of}]({of})" if of else ""
    return table(head, rows) + f"\nAt {commits(made)}, {made[0]['hardware']['cpu']}{files}.\n"


def kind(result: dict[str, Any]) -> str:
    """Say what decides which filters a run computes."""
    prune = result["config"]["prune"]
    if result["config"]["twin_of"]:
        return "static twin"
    return "none" if prune is None else f"{prune['head']}, {prune['pool']}"


def budget() -> str:
    """What was asked, predicted and delivered."""
    rows = []
    for name, runs in grouped("results/resnet20"):
        if not name.startswith("budget"):
            continue
        for run in runs:
            asked = run["asked_reduction"]
            missed = 100 * (run["test"]["reduction"] - asked)
            rows.append(
                (
                    percent(asked, 0),
                    percent(run["predicted_reduction"]),
                    percent(run["validation"]["reduction"], 2),
                    percent(run["test"]["reduction"], 2),
                    f"{missed:+.2f} points",
                    percent(run["test"]["top1"], 2),
                )
            )
    head = ("asked", "predicted", "on validation", "on test", "missed by", "top-1")
    return table(head, rows)


def overhead() -> str:
    """What gates cost before they save anything."""
    result = read("results/overhead.json")
    rows = [
        (
            f"training step, {step['network']}, {step['precision']}",
            f"{step['plain_ms']:.0f} ms",
            f"{step['ftwt_ms']:.0f} ms",
            f"{step['ratio']:.2f}",
        )
        for step in result["training_step"]
    ] + [
        (
            f"estimate from {run['images']:,} images, {run['network']}",
            f"{run['plain_ms'] / 1e3:.1f} s forward pass",
            f"{run['ftwt_ms'] / 1e3:.1f} s",
            f"{run['ratio']:.2f}",
        )
        for run in result["estimate"]
    ]
    return table(("", "plain", "ftwt", "ratio"), rows) + origin("results/overhead.json", result)


def self_check() -> str:
    """What share of compiling the check takes."""
    result = read("results/self-check.json")
    rows = [
        (
            row["network"],
            row["gates"],
            f"{row['convert_ms']:.0f} ms" if row["convert_ms"] else "",
            f"{row['compile_ms']:.0f} ms",
            f"{row['check_ms']:.0f} ms",
            percent(row["check_ms"] / (row["convert_ms"] + row["compile_ms"])),
            percent(row["check_ms"] / row["compile_ms"]),
            f"{row['pass_in_torch_ms']:.0f} + {row['pass_in_engine_ms']:.0f} ms",
        )
        for row in result["rows"]
    ]
    head = (
        "network, image", "gates", "`convert`", "`compile`", "of that the check", "share of both",
        "share of `compile`", "one pass in PyTorch + engine",
    )  # fmt: skip
    return table(head, rows) + origin("results/self-check.json", result)
