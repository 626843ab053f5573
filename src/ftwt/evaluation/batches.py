"""Batches of images and labels, checked before they are believed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph.inputs import refuse_unreadable

PAIRS = "batches must be pairs (images, labels)"


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Take a batch apart.

    Args:
        batch: A pair of float images (B, C, *spatial) and whole numbers (B,): tensors, or labels as
            an array or a list.

    Returns:
        The images, and the labels as int64.

    Raises:
        ValueError: It is no such pair. The message says what it is, and how to make one.
    """
    if isinstance(batch, dict):
        keys = ", ".join(map(repr, list(batch)[:5]))
        raise ValueError(
            f"{PAIRS}, not dicts with the keys {keys}; give a list or a DataLoader of pairs, say "
            "by a collate_fn that returns (batch['image'], batch['label'])"
        )
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        found = f"{type(batch).__name__}" + (
            f" of {len(batch)}" if hasattr(batch, "__len__") else ""
        )
        raise ValueError(f"{PAIRS}, not a {found}; leave out what else there is, such as paths")
    images, labels = batch
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images must be a tensor of floats, prepared as the network expects, not {kind}; "
            "bytes become floats by images.float() / 255, and a mean and std"
        )
    refuse_unreadable(images, "a batch of images")
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels must be class numbers, (B,), not {labels!r:.80}") from error
    if labels.is_meta or labels.layout != torch.strided:
        refuse_unreadable(labels, "a batch of labels")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or not whole:
        fix = (
            "labels.argmax(1) makes them of one-hot rows" if labels.dim() == 2 else "labels.long()"
        )
        if labels.dim() == 2 and labels.shape[1] == 1:
            fix = "labels.squeeze(1) makes them of a column"
        if labels.dim() == 0:
            fix = "labels[None] makes them of the label of one image"
        raise ValueError(
            f"labels must be class numbers, whole numbers of shape (B,), not {labels.dtype} of "
            f"shape {tuple(labels.shape)}; {fix}"
        )
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images with {len(labels)} labels; give one for each")
    return images, labels.long()
