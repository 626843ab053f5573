"""What a step minimises, beside the mask loss of the method."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..config import TrainConfig


def task_loss(outputs: Any, labels: Tensor, config: TrainConfig) -> Tensor:
    """Say how far outputs are from the labels.

    Of two passes both learn the labels, and the cheap one imitates the dear one, which does not
    feel it.

    Args:
        outputs: (B, classes) logits; or those of the cheap and the dear pass of a second look.
        labels: (B,) classes.
        config: The smoothing of labels; the weight and the temperature of the imitation.

    Source: Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques",
        section 3 (the sandwich rule and inplace distillation).
    """
    if not isinstance(outputs, tuple):
        return F.cross_entropy(outputs, labels, label_smoothing=config.label_smoothing)
    cheap, dear = outputs
    imitation = divergence(cheap, dear.detach(), config.temperature)
    labelled = task_loss(cheap, labels, config) + task_loss(dear, labels, config)
    return labelled + config.distillation * imitation


def first_of(outputs: Any) -> Any:
    """The outputs that training counts as its own: of two passes, those of the cheap one."""
    return outputs[0] if isinstance(outputs, tuple) and len(outputs) == 2 else outputs


def divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Say how far outputs are from a teacher's: KL at a temperature, times its square.

    Args:
        outputs: (B, classes) logits.
        teacher: (B, classes) logits to imitate.
        temperature: Divides both; > 0.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", section 2.
    """
    ours, theirs = (F.log_softmax(logits / temperature, 1) for logits in (outputs, teacher))
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2
