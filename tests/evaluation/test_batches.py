"""Batches that are no pairs of images and labels are refused; whole labels of any kind are not."""

import numpy as np
import pytest
import torch

import toys
from ftwt import evaluate
from ftwt.config import TrainConfig
from ftwt.evaluation.batches import images_and_labels
from ftwt.training.loop import train

IMAGES, LABELS = toys.pixels(8), torch.arange(8) % 4
GOOD = {
    "int64": LABELS,
    "int32": LABELS.int(),
    "uint8": LABELS.byte(),
    "list": LABELS.tolist(),
    "numpy": LABELS.numpy(),
    "numpy int16": LABELS.numpy().astype(np.int16),
}
BAD = {
    "one-hot": (IMAGES, torch.eye(4)[LABELS]),
    "smoothed": (IMAGES, torch.full((8, 4), 0.25)),
    "float": (IMAGES, LABELS.float()),
    "bool": (IMAGES, LABELS.bool()),
    "column": (IMAGES, LABELS[:, None]),
    "one label": (IMAGES[:1], 1),
    "complex images": (IMAGES + 0j, LABELS),
    "bool images": (IMAGES > 0, LABELS),
    "half": (IMAGES.half(), LABELS),
    "words": (IMAGES, ["cat"] * 8),
    "short": (IMAGES, LABELS[:7]),
    "dict": {"image": IMAGES, "label": LABELS},
    "triple": (IMAGES, LABELS, ["a.png"] * 8),
    "images alone": IMAGES,
    "bytes": (IMAGES.byte(), LABELS),
    "array": (IMAGES.numpy(), LABELS),
}
SAID = {
    "one-hot": r"torch.float32 of shape \(8, 4\); labels.argmax\(1\)",
    "smoothed": r"labels.argmax\(1\)",
    "float": r"not torch.float32 of shape \(8,\); labels.long\(\)",
    "bool": "not torch.bool",
    "column": r"of shape \(8, 1\); labels.squeeze\(1\)",
    "one label": r"of shape \(\); labels\[None\]",
    "complex images": "not torch.complex64",
    "bool images": "not torch.bool",
    "half": r"the network cannot take images of \(8, 3, 8, 8\)",
    "words": "must be class numbers",
    "short": "8 images with 7 labels",
    "dict": "not dicts with the keys 'image', 'label'",
    "triple": "not a tuple of 3",
    "images alone": "not a Tensor of 8",
    "bytes": r"not torch.uint8; bytes become floats",
    "array": "not ndarray",
}


@pytest.mark.parametrize("labels", GOOD.values(), ids=GOOD)
def test_whole_numbers_of_any_kind_are_labels(labels):
    model = toys.Toy().eval()
    expected = evaluate(model, [(IMAGES, LABELS)])
    assert evaluate(model, [(IMAGES, labels)]).top1 == expected.top1
    images, found = images_and_labels((IMAGES, labels))
    assert images is IMAGES and torch.equal(found, LABELS) and found.dtype == torch.int64


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_no_pair_of_images_and_labels_is_refused(kind, dynamic):
    model = toys.dynamic() if dynamic else toys.Toy()
    with pytest.raises(ValueError, match=SAID[kind]):
        evaluate(model, [BAD[kind]])


@pytest.mark.parametrize("kind", BAD)
def test_training_refuses_it_too(kind):
    good = [(IMAGES, LABELS)]
    with pytest.raises(ValueError, match=SAID[kind]):
        train(toys.Toy(), [BAD[kind]], good, TrainConfig(epochs=1), progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_images_that_are_not_finite_are_refused(dynamic, value):
    images = IMAGES.clone()
    images[3, 0, 0, 0] = value
    model = toys.dynamic() if dynamic else toys.Toy()
    with pytest.raises(ValueError, match="image 3 of a batch holds a value that is not finite"):
        evaluate(model, [(images, LABELS)])


def test_a_training_batch_without_images_is_refused():
    good = [(IMAGES, LABELS)]
    with pytest.raises(ValueError, match="the training batch of step 0 has no images"):
        train(toys.Toy(), [(IMAGES[:0], LABELS[:0])], good, TrainConfig(epochs=1), progress=False)


def test_an_empty_batch_counts_for_nothing():
    model = toys.Toy().eval()
    full, empty = (IMAGES, LABELS), (IMAGES[:0], LABELS[:0])
    assert evaluate(model, [full, empty]).images == 8
    with pytest.raises(ValueError, match="no batches to evaluate on"):
        evaluate(model, [empty])
