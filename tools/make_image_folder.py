"""Make a small folder of images by class, in ImageNet's layout, to try recipes without ImageNet.

    python tools/make_image_folder.py shapes
    ftwt train imagenet-resnet18-r91-decoupled --data-root shapes --validation 8 --weights None ...

Each class is a colour and a pattern (red-stripes, green-rings, ...) of any size, turn and place, on
a noisy background: JPEGs of different sizes and proportions, which a network learns in an epoch or
two. The same arguments always make the same images.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 210),
    "yellow": (210, 190, 40),
    "purple": (150, 50, 180),
    "grey": (130, 130, 130),
}
PATTERNS = ("stripes", "rings", "checks", "dots")


def class_names(count: int) -> list[str]:
    """Name so many classes, in an order in which the first ones are unlike each other."""
    turns = itertools.product(range(len(PATTERNS)), range(len(COLOURS)))
    colours = list(COLOURS)
    pairs = [(colours[k], PATTERNS[(k + turn) % len(PATTERNS)]) for turn, k in turns]
    if not 1 <= count <= len(pairs):
        raise ValueError(f"classes={count}: give 1 to {len(pairs)}")
    return [f"{colour}-{pattern}" for colour, pattern in pairs[:count]]


def draw_picture(name: str, *, side: int, rng: np.random.Generator) -> Image.Image:
    """Draw a picture of a class.

    Args:
        name: COLOUR-PATTERN.
        side: The shorter side in pixels; the longer one is up to half as long again.
        rng: Draws everything that is not the class.
    """
    colour, _, pattern = name.partition("-")
    size = np.array([side, rng.integers(side, side + side // 2 + 1)])
    height, width = rng.permutation(size)
    ys, xs = np.mgrid[:height, :width] / side
    turn, period = rng.uniform(0, np.pi), rng.uniform(0.12, 0.25)
    top, left = rng.uniform(0, height / side), rng.uniform(0, width / side)
    u = ((xs - left) * np.cos(turn) + (ys - top) * np.sin(turn)) * 2 * np.pi / period
    v = ((ys - top) * np.cos(turn) - (xs - left) * np.sin(turn)) * 2 * np.pi / period
    wave = {
        "stripes": np.sin(u),
        "rings": np.sin(np.hypot(u, v)),
        "checks": np.sign(np.sin(u) * np.sin(v)),
        "dots": np.cos(u) + np.cos(v) - 0.8,
    }[pattern]
    shown = np.clip(wave * 2, 0, 1)[..., None]
    background = rng.uniform(40, 215, 3)
    light = rng.uniform(0.7, 1.2)
    pixels = shown * np.array(COLOURS[colour]) * light + (1 - shown) * background
    pixels = pixels + rng.normal(0, 10, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_image_folder(
    root: str | os.PathLike[str],
    *,
    classes: int = 4,
    train: int = 16,
    val: int = 8,
    side: int = 256,
    seed: int = 0,
) -> Path:
    """Write the folder: `root/train/CLASS/*.JPEG` and `root/val/CLASS/*.JPEG`.

    Args:
        root: It is made if need be; files of the same names are replaced.
        classes: How many classes.
        train: Training images of each.
        val: Images of each in `val`.
        side: The shorter side of the images, in pixels.
        seed: Of all that is drawn.
    """
    names = class_names(classes)
    for part, count in (("train", train), ("val", val)):
        for number, name in enumerate(names):
            folder = Path(root) / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                rng = np.random.default_rng((seed, part == "val", number, index))
                picture = draw_picture(name, side=side, rng=rng)
                picture.save(folder / f"{name}_{index:04}.JPEG", quality=90)
    return Path(root)


def main() -> None:
    """Make the folder that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="the folder")
    for name, default, told in (
        ("classes", 4, "how many classes"),
        ("train", 16, "training images of each"),
        ("val", 8, "images of each in val"),
        ("side", 256, "shorter side in pixels"),
        ("seed", 0, "of all that is drawn"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{told} ({default})")
    given = vars(parser.parse_args())
    print(make_image_folder(given.pop("root"), **given))


if __name__ == "__main__":
    main()
