"""Weights from the file of a state dict, which may lie at an address."""

from __future__ import annotations

import os
import re
from pathlib import Path

from torch import Tensor

from ..files.download import check_digest, fetch
from ..files.tensors import load_state

STATES = (".pt", ".pth", ".safetensors")  # files of a state dict alone
ADDRESS = re.compile(r"https?://\S+", re.IGNORECASE)


def names_state(weights: str) -> bool:
    """Whether a string names the file of a state dict, here or at an address."""
    return bool(ADDRESS.match(weights)) or Path(weights).suffix in STATES


def read_state(weights: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a file; one at an address is downloaded once.

    Args:
        weights: A file, or `https://HOST/FILE.pth#sha256=DIGEST`. What is downloaded is kept in
            `~/.cache/ftwt`, or in $XDG_CACHE_HOME/ftwt, by its digest.

    Raises:
        ValueError: An address without a checksum, or what `load_state` refuses.
        FileNotFoundError: There is no such file.
        ConnectionError: It cannot be downloaded.
    """
    address = str(weights)
    if not ADDRESS.match(address):
        return load_state(weights)
    url, _, fragment = address.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    suffix = Path(url.partition("?")[0]).suffix
    if suffix not in STATES:
        raise ValueError(f"{url} ends in none of {', '.join(STATES)}, as a state dict's file does")
    if not fragment.startswith("sha256=") or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(
            f"{url} needs its checksum, for what lies at an address may change: "
            f"{url}#sha256=DIGEST, of 64 digits, which `sha256sum FILE` prints"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "ftwt" / f"{digest}{suffix}"
    if kept.is_file():
        fix = "delete it, and it is downloaded again"
        check_digest(kept, digest, algorithm="sha256", fix=fix)
    else:
        otherwise = "get the file some other way, and name it as the weights"
        fetch(url, kept, digest=digest, algorithm="sha256", otherwise=otherwise)
    return load_state(kept)
