"""Make the CIFAR-10 images inside the package from the official ones.

    python tools/make_embedded.py --data-root data

Writes `train.webp`, `test.webp` (lossless mosaics) and `index.json` (for each split: the images'
places in the official split, their labels, and the SHA-256 of their pixels).
"""

import argparse
import hashlib
import json

from PIL import Image

from ftwt.data.cifar import cifar10
from ftwt.data.images import balanced
from ftwt.data.subset import FOLDER, to_mosaic

SEED = 0
COUNTS = {"train": 2000, "test": 1000}
COLUMNS = 40


def main() -> None:
    """Draw, pack and note both splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-bin/")
    root = parser.parse_args().data_root
    FOLDER.mkdir(exist_ok=True)
    index: dict[str, object] = {"source": "CIFAR-10 (Krizhevsky 2009)", "seed": SEED}
    for split, count in COUNTS.items():
        official = cifar10(root, train=split == "train")
        places = balanced(official, count=count, seed=SEED)
        chosen = official.select(places)
        pixels = chosen.images.numpy()
        mosaic = Image.fromarray(to_mosaic(pixels, columns=COLUMNS))
        # The greatest effort: it is paid for once.
        mosaic.save(FOLDER / f"{split}.webp", lossless=True, quality=100, method=6)
        index["classes"] = official.classes
        index[split] = {
            "sha256": hashlib.sha256(pixels).hexdigest(),
            "places": places.tolist(),
            "labels": chosen.labels.tolist(),
        }
    (FOLDER / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
