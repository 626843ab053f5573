"""The table of exported networks, held to PyTorch."""

from __future__ import annotations

from .files import read
from .layout import origin, percent, table

RESULT = "results/exports.json"
RUNTIMES = ("onnxruntime", "openvino")


def exports() -> str:
    """Each network's masks and outputs in two runtimes."""
    result = read(RESULT)
    rows = []
    for name, found in result["networks"].items():
        row = [name, str(found["gates"]), percent(found["keep"])]
        row.append(f"{found['onnxruntime']['decisions']:,}")
        for runtime in RUNTIMES:
            held = found[runtime]
            row += [f"{held['decided_otherwise']:,}", f"{held['deviation']:.1e}"]
        rows.append(row)
    told = [next(iter(result["networks"].values()))[runtime]["runtime"] for runtime in RUNTIMES]
    head = ["network", "gates", "filters kept", "mask entries"]
    for runtime in told:
        head += [f"{runtime}: differ", "deviation"]
    return table(head, rows) + origin(RESULT, result)
