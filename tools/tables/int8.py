"""The table of what eight bits cost in accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import ROOT, read
from .layout import commits, origin, percent, table

NO_SPEEDS = "No results yet: `ftwt bench MODEL --precision int8 --keep 0.5`.\n"
LEAST_SHARE = 0.05  # of a network's time, of what the table names


def eight_bits() -> str:
    """Float engine beside int8, ranges by each rule, on the same test images."""
    results = _read("results/int8")
    if not results:
        return "No results yet: `python benchmarks/eight_bits.py cifar10-resnet20`.\n"
    rows = []
    for result in results:
        found = {row["rule"]: row for row in result["rows"]}
        best = found.get("minmax") or next(iter(found.values()))
        masks = [row for row in found.values() if row.get("same_masks") is not None]
        rows.append(
            (
                f"{result['network']}, {result['images']:,} images{_on(result)}",
                percent(result["f32_top1"], 2),
                *(
                    percent(found[rule]["top1"], 2) if rule in found else ""
                    for rule in ("minmax", "percentile", "mse", "openvino-int8")
                ),
                percent(best["same_guess"], 1),
                percent(best["same_masks"], 2) if masks else "",
                str(len(best["float_layers"])),
            )
        )
    head = (
        "network, test images", "float32", "int8: min-max", "percentile", "squared error",
        "OpenVINO int8", "same guess", "same masks", "layers left float",
    )  # fmt: skip
    made = commits(result["provenance"] for result in results)
    return table(head, rows) + f"\n`eight_bits.py` at {made}: [results/int8](results/int8).\n"


def eight_bits_speed() -> str:
    """Our eight-bit engine beside OpenVINO in float, bfloat16 and int8; masks by lot."""
    results = _single()
    if not results:
        return NO_SPEEDS
    rows = []
    for result in sorted(results, key=_where):
        ms = _times(result)
        ours, rival = ms["ftwt gated"], ms.get("openvino-int8")
        rivals = ("openvino", "openvino-bf16", "openvino-int8")
        rows.append(
            (
                _where(result),
                f"{result['network']}, {result['input_shape'][-1]}",
                *(f"{ms[name]:.2f} ms" if name in ms else "left out" for name in rivals),
                f"{ms['ftwt dense']:.2f} ms",
                f"{ours:.2f} ms ({percent(result['reduction'], 0)})",
                f"{ms['openvino'] / ours:.2f}x",
                "" if rival is None else f"{rival / ours:.2f}x",
                "" if result["correlation"] is None else f"{result['correlation']:.3f}",
            )
        )
    head = (
        "our kernels, processor", "network, image size",
        "OpenVINO f32", "bf16", "int8 (NNCF)", "ours int8, dense",
        "half of the filters (fewer MACs)", "over OpenVINO f32", "over its dense int8",
        "correlation of MACs and latency",
    )  # fmt: skip
    made = commits(result["provenance"] for result in results)
    where = "[results/int8-speed](results/int8-speed)"
    return table(head, rows) + f"\n`ftwt bench` at {made}, 1 thread: {where}.\n"


def speed() -> str:
    """The same in short, of the processor that was measured last."""
    results = _single()
    if not results:
        return NO_SPEEDS
    where = _where(max(results, key=lambda result: str(result["provenance"]["date"])))
    results = [result for result in results if _where(result) == where]
    rows = []
    for result in results:
        ms = _times(result)
        rival = min((n for n in ms if not n.startswith("ftwt")), key=lambda name: ms[name])
        rows.append(
            (
                f"{result['network']}, {result['input_shape'][-1]}",
                f"{ms['openvino']:.2f} ms",
                f"{ms[rival]:.2f} ms ({rival})",
                f"{ms['ftwt dense']:.2f} ms",
                f"{ms['ftwt gated']:.2f} ms",
                percent(result["reduction"], 0),
                f"**{ms[rival] / ms['ftwt gated']:.2f}x**",
            )
        )
    head = (
        "network, image size", "OpenVINO f32", "fastest rival, dense", "ours int8, dense",
        "ours int8, half of the filters", "fewer MACs", "faster than the rival",
    )  # fmt: skip
    made = commits(result["provenance"] for result in results)
    link = "[results/int8-speed](results/int8-speed)"
    return table(head, rows) + f"\n`engine.py --precision int8` at {made}, {where}: {link}.\n"


def eight_bits_threads() -> str:
    """Our eight-bit engine beside OpenVINO's, with more threads and more images at a time."""
    results = [result for result in _read("results/int8-speed") if "openvino" not in _times(result)]
    if not results:
        return "No results yet: `benchmarks/engine.py NETWORK --precision int8 --batch 64`.\n"
    rows = []
    for result in sorted(
        results, key=lambda one: (_where(one), one["network"], one["batch"], one["threads"])
    ):
        ms = _times(result)
        images = {name: 1000 / time for name, time in ms.items()}
        rows.append(
            (
                _where(result),
                result["network"],
                str(result["threads"]),
                str(result["batch"]),
                *(
                    f"{ms[name]:.2f} ms, {images[name]:.0f}"
                    for name in ("openvino-int8", "ftwt dense", "ftwt gated")
                ),
                f"{ms['openvino-int8'] / ms['ftwt dense']:.2f}x",
                f"{ms['openvino-int8'] / ms['ftwt gated']:.2f}x",
            )
        )
    head = (
        "our kernels, processor", "network", "threads", "images at a time",
        "OpenVINO int8: an image, images/s",
        "ours, dense", "half of the filters", "dense over dense", "half over dense",
    )  # fmt: skip
    made = commits(result["provenance"] for result in results)
    where = "[results/int8-speed](results/int8-speed)"
    return table(head, rows) + f"\n`engine.py --precision int8` at {made}: {where}.\n"


def eight_bits_operations() -> str:
    """Where the time of eight-bit networks goes, by kind of operation."""
    paths = sorted((ROOT / "results").glob("int8-operations*.json"))
    if not paths:
        return "No results yet: `python benchmarks/operations.py torchvision:resnet18`.\n"
    results = [(name, read(name)) for name in (str(path.relative_to(ROOT)) for path in paths)]
    rows = [(_machine(*one), *row) for one in results for row in _shares(one[1])]
    head = (
        "processor", "network", "gates", "operations", "how many", "an image", "share",
        "useful GMAC/s",
    )  # fmt: skip
    most = ", ".join(f"{_machine(*one)} {one[1]['gmacs']:.0f} GMAC/s" for one in results)
    told = f"One 1x1 layer, 512 by 512 on 28x28, without gates: {most}."
    return table(head, rows) + f"\n{told}\n" + "".join(origin(*result) for result in results)


def _machine(path: str, result: dict[str, Any]) -> str:
    """The processor, and what the file's name adds: processors of one name differ."""
    added = Path(path).stem.removeprefix("int8-operations").strip("-")
    return f"{_processor(result)} {added}".strip()


def _shares(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of each network, what takes a share of its time worth naming."""
    whole: dict[tuple[str, float | None], float] = {}
    for row in result["rows"]:
        which = row["network"], row["keep"]
        whole[which] = whole.get(which, 0.0) + row["ms"]
    rows = []
    for row in result["rows"]:
        share = row["ms"] / whole[row["network"], row["keep"]]
        if share < LEAST_SHARE:
            continue
        rows.append(
            (
                row["network"],
                "none" if row["keep"] is None else f"keep {row['keep']:g}",
                row["kind"],
                str(row["count"]),
                f"{row['ms']:.2f} ms",
                percent(share, 0),
                f"{row['gmacs']:.0f}" if row["gmacs"] >= 1 else "",
            )
        )
    return rows


def _on(result: dict[str, Any]) -> str:
    """The instruction set, where older results do not say it is avx512."""
    return "" if result.get("isa", "avx512") == "avx512" else f", {result['isa']}"


def _single() -> list[dict[str, Any]]:
    """Speeds of single images on one thread, beside all of the rivals."""
    return [result for result in _read("results/int8-speed") if "openvino" in _times(result)]


def _times(result: dict[str, Any]) -> dict[str, float]:
    return {timing["name"]: timing["latency_ms"] for timing in result["timings"]}


def _where(result: dict[str, Any]) -> str:
    return f"{result['isa']}, {_processor(result)}"


def _processor(result: dict[str, Any]) -> str:
    return str(result["provenance"]["hardware"]["cpu"]).removesuffix(" Processor")


def _read(folder: str) -> list[dict[str, Any]]:
    return [read(str(path.relative_to(ROOT))) for path in sorted((ROOT / folder).glob("*.json"))]


def footprint() -> str:
    """Bytes of a file and of its weights, loading, memory of a process without torch."""
    path = "results/footprint.json"
    if not (ROOT / path).exists():
        return "No results yet: `python benchmarks/footprint.py`.\n"
    result = read(path)
    rows = [
        (
            f"{row['network']}, {row['precision']}",
            f"{row['weight_bytes'] / 1e6:.2f} MB",
            f"{row['file_bytes'] / 1e6:.2f} MB",
            f"{row['load_ms']:.0f} ms",
            f"{row['bare_mb']:.0f} MB",
            f"{row['peak_mb']:.0f} MB",
            f"{row['runs']:,}",
            f"{row['growth_mb']:.1f} MB",
        )
        for row in result["rows"]
    ]
    head = ("network", "weights", "file", "loading", "process before", "its peak", "runs", "growth")
    return table(head, rows) + origin(path, result)
