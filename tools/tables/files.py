"""Result files: where they are, and reading them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = "src/ftwt/shipped/networks"  # the networks that come with the package


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
