"""What a network of a name takes and gives: how images are prepared for it, what it says of them.

Training, evaluation and `ftwt run` all ask here, so that they show a network the same.
"""

from __future__ import annotations

from ..data.cifar import CIFAR10, CIFAR100
from ..data.subset import SIDE, read_index
from ..files.pictures import Preprocessing
from ..models.vision import import_vision
from ..names import is_own

CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


def known(name: str) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """What is known of a network from its name in `ftwt.models`.

    Returns:
        How images are prepared for it, and what its outputs are called; some of timm's have no
        names. Of `module:function` neither is known.
    """
    if is_own(name):
        return None, ()
    source, _, foreign = name.rpartition(":")
    if source == "torchvision":
        return _torchvision(foreign)
    if source == "timm":
        return _timm(foreign)
    other = name.startswith("cifar100-")
    dataset = CIFAR100 if other else CIFAR10
    classes = CIFAR100_CLASSES.split() if other else read_index()["classes"]
    return Preprocessing(SIDE, SIDE, dataset.mean, dataset.std), tuple(classes)


def _torchvision(name: str) -> tuple[Preprocessing, tuple[str, ...]]:
    weights = import_vision("torchvision").models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    how = Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )
    return how, tuple(weights.meta["categories"])


def _timm(name: str) -> tuple[Preprocessing, tuple[str, ...]]:
    timm = import_vision("timm")
    config = timm.models.get_pretrained_cfg(name)
    crop = config.input_size[-1]
    how = Preprocessing(
        resize=int(crop / config.crop_pct),
        crop=crop,
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=config.interpolation,
    )
    if config.num_classes != 1000:  # not ImageNet's usual ones
        return how, ()
    names = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    return how, tuple(name.split(",")[0] for name in names)
