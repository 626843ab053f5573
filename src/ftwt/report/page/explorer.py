"""The explorer's part of the page: what it shows of a recording, as small as it can be."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ...records.recording import Recording

MOST_PIXELS = 160  # side of a picture in the page
MOST_CELLS = 32  # side of a heatmap in the page
LOSSLESS = 64  # pictures up to this side are kept as they are


def explorer(recording: Recording, name: str) -> dict[str, Any]:
    """All that the explorer shows of a recording, as JSON values: of the shown images alone.

    Args:
        recording: A network's, with gates; K of its N images are shown.
        name: What to call the network.

    Returns:
        Units, the shown images with their cost and their place among all N, how often each filter
        fired in all N, packed masks (K rows), heatmaps as bytes, pictures as data addresses.
    """
    shown = recording.shown
    costs = np.sort(recording.executed_macs)
    cheaper = np.searchsorted(costs, recording.executed_macs[shown])  # of all N images
    packed = [recording.packed_masks[unit.name][shown] for unit in recording.units]
    return {
        "name": name,
        "network": recording.network,
        "classes": list(recording.classes),
        "images": len(recording),
        "dense_macs": recording.dense_macs,
        "side": max(recording.pictures.shape[1:3]),
        "units": [
            {
                "name": unit.name,
                "channels": unit.channels,
                "share": unit.macs / recording.dense_macs,
                "inherited": list(unit.inherited_by),
            }
            for unit in recording.units
        ],
        "fired": [fired(recording, unit.name).tolist() for unit in recording.units],
        "shown": [
            {
                "index": int(image),
                "label": int(recording.labels[image]),
                "prediction": int(recording.predictions[image]),
                "confidence": round(float(recording.confidence[image]), 4),
                "macs": round(float(recording.executed_macs[image])),
                "above": int(below) / len(recording),
            }
            for image, below in zip(shown, cheaper, strict=True)
        ],
        "pictures": [data_address(picture) for picture in recording.pictures],
        "masks": _text(np.concatenate(packed, axis=1)),
        "heatmaps": _heatmaps(recording.dense_heatmaps, recording.dynamic_heatmaps),
    }


def fired(recording: Recording, unit: str) -> np.ndarray:
    """For how many of the N images each filter of a unit fired: (C,) int64."""
    return recording.masks(unit).sum(0, dtype=np.int64)


def data_address(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as an address that holds the picture itself."""
    image, kind, held = Image.fromarray(picture), "png", io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(held, "PNG", optimize=True)
    else:
        image.thumbnail((MOST_PIXELS, MOST_PIXELS))
        image.save(held, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"


def _heatmaps(dense: Mapping[str, np.ndarray], dynamic: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Pairs of heatmaps as bytes, each pair with one scale: (unit, image, dense or dynamic).

    A byte of 255 is the pair's `highest` value.
    """
    units, parts, start = [], [], 0
    for name in dense:
        pair = np.stack([dense[name], dynamic[name]], axis=1).astype(np.float32)  # (K, 2, h, w)
        pair = _smaller(pair)
        highest = pair.max(axis=(1, 2, 3), keepdims=True)
        scaled = np.rint(255 * pair / np.where(highest > 0, highest, 1)).astype(np.uint8)
        units.append(
            {
                "name": name,
                "high": pair.shape[2],
                "wide": pair.shape[3],
                "from": start,
                "highest": [float(f"{value:.4g}") for value in highest.ravel()],
            }
        )
        parts.append(scaled.ravel())
        start += scaled.size
    values = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return {"units": units, "values": _text(values)}


def _smaller(maps: np.ndarray) -> np.ndarray:
    """The same maps with at most 32 cells a side: means over blocks, what is left over is cut."""
    *_, high, wide = maps.shape
    step = -(-max(high, wide) // MOST_CELLS)
    if step == 1:
        return maps
    rows, columns = max(high // step, 1), max(wide // step, 1)
    cut = maps[..., : rows * step, : columns * step]
    blocks = cut.reshape(*cut.shape[:-2], rows, min(step, high), columns, min(step, wide))
    return blocks.mean(axis=(-3, -1))


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
