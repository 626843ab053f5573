"""Write the tables of README.md and docs/results.md from the result files in results/.

    python tools/write_tables.py           # rewrite what stands between the markers
    python tools/write_tables.py --check   # only say whether anything would change

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is one of the functions below.
Nothing between the markers is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/engine.md", "docs/models.md", "docs/results.md")
SHIPPED = "src/ftwt/shipped/networks"  # the networks that come with the package
EACH = "corrupted"  # key of a corruptions file: figures by corruption and severity
NO_CORRUPTIONS = "No results yet: `ftwt robustness MODEL ... --output results/corruptions`.\n"
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def demo() -> str:
    """The table of `make demo`."""
    result = read("results/demo.json")
    dense, dynamic = result["dense"], result["dynamic"]
    steps = [f"{result[key]:.0f} ms" for key in ("dense_step_ms", "dynamic_step_ms")]
    spread = f"{percent(dynamic['reduction'])} ± {percent(dynamic['reduction_std'])}"
    rows = [
        ("top-1 accuracy, 1,000 test images", percent(dense["top1"]), percent(dynamic["top1"])),
        ("MACs executed per image", million(dense), million(dynamic)),
        ("reduction asked", "", percent(result["asked"])),
        (f"reduction predicted, r = {result['r']:.3f}", "", percent(result["predicted"])),
        ("reduction achieved, ± over images", "", spread),
        ("mask accuracy", "", percent(dynamic["mask_accuracy"])),
        ("training step of 128 images", *steps),
    ]
    if result.get("dense_image_ms"):  # where the native engine was built
        images = [f"{result[key]:.2f} ms" for key in ("dense_image_ms", "dynamic_image_ms")]
        rows.append(("an image on the native engine, one thread", *images))
    return table(("", "dense", "dynamic"), rows) + origin("results/demo.json", result)


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
    rows = []
    for name, runs in grouped("results/resnet20"):
        if name.startswith("budget"):
            continue
        prune = runs[0]["config"]["prune"] or {}
        kind = (
            "static twin" if runs[0]["config"]["twin_of"] else f"{prune['head']}, {prune['pool']}"
        )
        gates = [run["test"]["dynamism"] for run in runs]
        dynamic = not runs[0]["config"]["twin_of"]
        shares = " / ".join(
            percent(mean(gate[key] for gate in gates), 0)
            for key in ("always", "sometimes", "never")
        )
        rows.append(
            (
                name,
                kind,
                over(run["test"]["top1"] for run in runs),
                over(run["predicted_reduction"] for run in runs) if dynamic else "",
                over(run["test"]["reduction"] for run in runs),
                over(run["test"]["published_reduction"] for run in runs),
                over(run["test"]["mask_accuracy"] for run in runs) if dynamic else "",
                shares,
                f"{mean(gate['entropy'] for gate in gates):.2f}",
                str(len(runs)),
            )
        )
    head = (
        "run", "gates", "top-1", "predicted", "executed", "published", "mask accuracy",
        "filters always / sometimes / never", "entropy, bits", "seeds",
    )  # fmt: skip
    return table(head, rows)


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


def engine() -> str:
    """What skipping is worth on the engine, against the fastest dense rival."""
    rows = []
    for _, result in measured():
        latency = {timing["name"]: timing["latency_ms"] for timing in result["timings"]}
        rival = result["fastest_rival"]
        rows.append(
            (
                subject(result),
                str(result["threads"]),
                f"{rival}, {latency[rival]:.2f} ms",
                f"{latency['ftwt dense']:.2f} ms",
                f"{result['dense_ratio']:.2f}",
                f"{latency['ftwt gated']:.2f} ms",
                percent(result["reduction"]),
                f"{result['theoretical']:.2f}",
                f"{result['achieved']:.2f}",
                f"{result['efficiency']:.2f}",
                f"{result['achieved_over_dense']:.2f}",
                "" if result["correlation"] is None else f"{result['correlation']:.3f}",
            )
        )
    head = (
        "network", "threads", "fastest dense rival", "ours, dense", "rival / ours",
        "ours, gated", "fewer MACs", "theoretical", "achieved", "efficiency",
        "over ours, dense", "r (MACs, latency)",
    )  # fmt: skip
    return table(head, rows) + origins()


def speed() -> str:
    """The same in short: one thread, masks by lot."""
    rows = []
    for _, result in measured():
        if result["threads"] != 1 or result["forced_keep"] is None:
            continue
        latency = {timing["name"]: timing["latency_ms"] for timing in result["timings"]}
        rival = result["fastest_rival"]
        rows.append(
            (
                f"{result['network']}, {result['input_shape'][-1]}",
                f"{latency[rival]:.2f} ms ({rival})",
                f"{latency['ftwt dense']:.2f} ms",
                f"{latency['ftwt gated']:.2f} ms",
                percent(result["reduction"]),
                f"**{result['achieved']:.2f}x**",
            )
        )
    head = (
        "network, image size", "fastest dense rival", "ours, dense", "ours, half of the filters",
        "fewer MACs", "faster than the rival",
    )  # fmt: skip
    return table(head, rows) + origins()


def traffic() -> str:
    """How near the late layers of VGG16-BN come to the memory's speed."""
    path = "results/engine-traffic.json"
    if not (ROOT / path).exists():
        return "No results yet: `python benchmarks/traffic.py`.\n"
    result = read(path)
    rows = [
        (
            layer["name"],
            f"{layer['megabytes']:.2f} MB",
            f"{layer['bound_ms']:.3f} ms",
            f"{layer['measured_ms']:.3f} ms",
        )
        for layer in (
            *result["layers"],
            {"name": "together", "megabytes": sum(x["megabytes"] for x in result["layers"])}
            | {key: result[key] for key in ("bound_ms", "measured_ms")},
        )
    ]
    head = ("layer", "weights read", f"at {result['stream_gb_per_s']:.1f} GB/s", "measured")
    return table(head, rows) + origin(path, result)


def rivals() -> str:
    """Everybody's latency, with quartiles."""
    found = list(measured())
    names = dict.fromkeys(t["name"] for _, result in found for t in result["timings"])
    rows = []
    for _, result in found:
        cells = {
            t["name"]: f"{t['latency_ms']:.2f} ({t['low_ms']:.2f} - {t['high_ms']:.2f})"
            for t in result["timings"]
        } | dict.fromkeys(result["left_out"], "left out")
        rows.append((subject(result), str(result["threads"]), *(cells.get(n, "") for n in names)))
    return table(("network", "threads", *names), rows) + origins()


def corruptions() -> str:
    """What severity does to accuracy, reduction and keep ratio, networks side by side."""
    files = corrupted()
    if not files:
        return NO_CORRUPTIONS
    severities = sorted({entry["severity"] for result in files.values() for entry in result[EACH]})
    rows = []
    for key, figure in (("top1", "top-1"), ("reduction", "reduction"), ("keep", "filters kept")):
        for name, result in files.items():
            levels = [
                [entry[key] for entry in result[EACH] if entry["severity"] == severity]
                for severity in severities
            ]
            shares = [result["clean"][key], *map(mean, levels), result["mean"][key]]
            rows.append((f"{figure}, {name}", *(percent(share, 2) for share in shares)))
    head = ("", "clean", *(f"severity {n}" for n in severities), "mean of corrupted")
    return table(head, rows) + origin_of_corruptions(files)


def corruption_kinds() -> str:
    """Top-1 by corruption, over all severities, networks side by side."""
    files = corrupted()
    if not files:
        return NO_CORRUPTIONS
    kinds = dict.fromkeys(e["corruption"] for result in files.values() for e in result[EACH])
    rows = []
    for kind in kinds:
        found = [
            [entry["top1"] for entry in result[EACH] if entry["corruption"] == kind]
            for result in files.values()
        ]
        rows.append((kind.replace("_", " "), *(percent(mean(shares), 2) for shares in found)))
    return table(("corruption", *files), rows) + origin_of_corruptions(files)


def static() -> str:
    """Static pruning beside the dynamic runs that it was matched to, and their twins."""
    made = [result for _, runs in grouped("results/static") for result in runs]
    if not made:
        return "No results yet: `python benchmarks/static_pruning.py runs/NAME`.\n"
    runs = [read(str(path.relative_to(ROOT))) for path in sorted(ROOT.glob("results/*/*.json"))]
    twins = [run for run in runs if (run.get("config") or {}).get("twin_of")]
    rows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}  # run, method, epochs -> figures
    for result in made:
        name = result["matched"]["to"]
        run = re.sub(r"-seed\d+$", "", name)
        on = {"macs": "MACs"}.get(result["matched"]["on"], result["matched"]["on"])
        method = f"Torch-Pruning, {result['importance']}, equal {on}"
        found = [("dynamic", result["dynamic"])]
        found += [
            ("static twin", outcome(twin))
            for twin in twins
            if Path(twin["config"]["twin_of"]).name == name
        ]
        for kind, figures in (*found, (method, outcome(result))):
            same = rows.setdefault((run, kind, figures["epochs"]), [])
            if figures not in same:  # one dynamic run, pruned several ways
                same.append(figures)
    order = {"dynamic": 0, "static twin": 1}
    lines = [
        (
            run,
            method,
            over(figures["top1"] for figures in seeds),
            over(figures["reduction"] for figures in seeds),
            ratio(seeds),
            str(epochs),
            str(len(seeds)),
        )
        for (run, method, epochs), seeds in sorted(
            rows.items(), key=lambda row: (row[0][0], order.get(row[0][1], 2), row[0][1:])
        )
    ]
    head = ("run", "method", "top-1", "executed", "latency / dynamic", "epochs", "seeds")
    version = ", ".join(sorted({result["library"]["version"] for result in made}))
    commits = {(result["provenance"]["git"] or {}).get("commit", "")[:7] for result in made}
    return table(head, lines) + (
        f"\nTorch-Pruning {version}, `benchmarks/static_pruning.py` at "
        f"{', '.join(sorted(commits))}, {made[0]['provenance']['hardware']['cpu']}: "
        "[results/static](results/static).\n"
    )


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What a run achieved, as a static-pruning file tells of the dynamic one."""
    train = result["config"]["train"]
    return {
        "top1": result["test"]["top1"],
        "reduction": result["test"]["reduction"],
        "epochs": train["epochs"],
        "seed": train["seed"],
        **({"latency": result["latency"]["ratio"]} if "latency" in result else {}),
    }


def ratio(seeds: list[dict[str, Any]]) -> str:
    """Mean latency beside the dynamic network's, where it was measured."""
    latencies = [figures["latency"] for figures in seeds if "latency" in figures]
    return f"{mean(latencies):.2f}" if latencies else ""


TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        demo,
        baseline,
        networks,
        study,
        static,
        budget,
        overhead,
        engine,
        speed,
        traffic,
        rivals,
        corruptions,
        corruption_kinds,
    )
}


def main() -> int:
    """Rewrite, or check, the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        up = "../" * page.count("/")
        made = BLOCK.sub(
            lambda found, up=up: found[1] + TABLES[found[2]]().replace("](", f"]({up}") + found[3],
            text,
        )
        if made != text:
            stale.append(page)
            if not check:
                (ROOT / page).write_text(made, encoding="utf-8")
    print("\n".join(f"{'stale' if check else 'written'}: {page}" for page in stale) or "up to date")
    return int(check and bool(stale))


def read(path: str) -> dict[str, Any]:
    """Read a result file."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def grouped(folder: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Result files of a folder, those that differ only in their seed together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / folder).glob("*.json")):
        name = re.sub(r"-seed\d+$", "", path.stem)
        groups.setdefault(name, []).append(read(str(path.relative_to(ROOT))))
    return list(groups.items())


def measured() -> Iterable[tuple[str, dict[str, Any]]]:
    """Result files of benchmarks/engine.py, smallest images and networks first."""
    paths = [str(path.relative_to(ROOT)) for path in (ROOT / "results/engine").glob("*.json")]
    files = [(path, read(path)) for path in paths]
    return sorted(
        files, key=lambda f: (f[1]["input_shape"], f[1]["dense_macs"], f[0], f[1]["threads"])
    )


def corrupted() -> dict[str, dict[str, Any]]:
    """Result files of `ftwt robustness` by file name, dense networks first."""
    paths = sorted((ROOT / "results/corruptions").glob("*.json"))
    files = {path.stem: read(str(path.relative_to(ROOT))) for path in paths}
    seen = {(result["images"], result["source"], len(result[EACH])) for result in files.values()}
    if len(seen) > 1:
        raise SystemExit(
            f"results/corruptions: made of different images, {seen}; make them at once"
        )
    return dict(sorted(files.items(), key=lambda f: (f[1]["clean"]["reduction"] > 0, f[0])))


def origin_of_corruptions(files: dict[str, dict[str, Any]]) -> str:
    """Say on which images and by which commands a table of corruptions was made."""
    result = next(iter(files.values()))
    images = {"ftwt": "corrupted by ftwt", "cifar-10-c": "and the published files of CIFAR-10-C"}
    made = [each["provenance"] for each in files.values()]
    commands = ", ".join(f"`{command}`" for command in sorted({p["command"] for p in made}))
    commits = ", ".join(sorted({(p.get("git") or {}).get("commit", "")[:7] for p in made}))
    return (
        f"\n{result['images']:,} test images, {images[result['source']]}. {commands} at {commits}: "
        f"[results/corruptions](results/corruptions).\n"
    )


def subject(result: dict[str, Any]) -> str:
    """Name a network that was timed, with its masks."""
    keep = result["forced_keep"]
    masks = "trained" if keep is None else f"keep {keep:g}"
    return f"{result['network']}, {result['input_shape'][-1]}, {masks}"


def origins() -> str:
    """Say which files made a table, on what."""
    files = list(measured())
    if not files:
        return "\nNo results yet: `python benchmarks/engine.py`.\n"
    made = [result["provenance"] for _, result in files]
    commits = sorted({(p.get("git") or {}).get("commit", "")[:7] for p in made})
    commands = sorted({p["command"] for p in made})
    return (
        f"\n{', '.join(f'`{command}`' for command in commands)} at {', '.join(commits)}, "
        f"{made[0]['hardware']['cpu']}, {files[0][1]['isa']}: [results/engine](results/engine).\n"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a Markdown table."""
    head = list(head)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def origin(path: str, result: dict[str, Any]) -> str:
    """Say which file and command made a table, on what."""
    made = result["provenance"]
    commit = (made.get("git") or {}).get("commit", "")[:7]
    hardware = f"{made['hardware']['cpu']}, {made['hardware']['cores']} threads"
    return f"\n`{made['command']}` at {commit}, {hardware}: [{path}]({path}).\n"


def percent(share: float, digits: int = 1) -> str:
    """Write a share as a percentage."""
    return f"{round(100 * share, digits) + 0.0:.{digits}f}%"  # + 0.0: no minus before a zero


def million(evaluation: dict[str, Any]) -> str:
    """Write executed MACs in millions."""
    return f"{evaluation['executed_macs'] / 1e6:.2f} M"


def over(shares: Iterable[float]) -> str:
    """Mean, and standard deviation where there are several seeds."""
    values = list(shares)
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{percent(mean(values), 2)}{spread}"


if __name__ == "__main__":
    sys.exit(main())
