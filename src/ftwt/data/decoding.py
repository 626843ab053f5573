"""Batches of image files, decoded, cut and augmented in processes of their own."""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..files.pictures import Preprocessing, cut_middle, open_picture
from ..models.vision import import_vision
from .epochs import Epochs
from .folder import ImageFiles

Request = list[tuple[str, int]]  # files of a batch, each with its index in the split


class FileBatches(Epochs):
    """Batches of image files; the options are those of `Epochs`, and how many processes decode.

    As they are, images are resized and their middle is cut out, as `ftwt run` does it. To augment
    is to cut a part at random, of 8 to 100% of the area and of proportions between 3:4 and 4:3,
    and to flip one in two; it depends on seed, epoch and index alone, not on who decodes. What a
    run that resumes in mid-epoch skips is not decoded. Pixels are normalised on the device.

    Args:
        images: a split.
        workers: processes that decode; 0: this one does.
        options: of `Epochs`.

    Raises:
        ValueError: see `Epochs`; in iteration, an image that cannot be read, by name.
        FileNotFoundError: in iteration, an image that is gone.
    """

    images: ImageFiles

    def __init__(self, images: ImageFiles, *, workers: int = 0, **options: Any) -> None:
        super().__init__(images, **options)
        if workers < 0:
            raise ValueError(f"workers={workers}: give 0 (this process decodes) or more")
        self.workers = workers

    def iterate(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's batches from the `start`-th on, the same that `__iter__` yields."""
        order = self._order(np.random.default_rng((self.seed, self.epoch)))
        shares = [order[self._share(step)] for step in range(start, len(self))]
        draw = (self.seed, self.epoch) if self.augment else None
        loader = DataLoader(
            _Decoder(self.images.how, draw),
            batch_size=None,  # a request is a whole batch
            sampler=([(self.images.paths[i], i) for i in share.tolist()] for share in shares),
            num_workers=self.workers,
            worker_init_fn=_leave_signals if self.workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or it would draw from the caller's
        )
        for share, pixels in zip(shares, loader, strict=True):
            if isinstance(pixels, Exception):
                raise pixels
            pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            labels = self.images.labels[torch.from_numpy(share)].to(self.device)
            yield self._normalised(pixels), labels


class _Decoder(Dataset[Any]):
    """Files to pixels. It holds so little that to start a process with it takes no time."""

    def __init__(self, how: Preprocessing, draw: tuple[int, int] | None) -> None:
        self.how, self.draw = how, draw
        self.cut: Any = None

    def __getitem__(self, request: Request) -> Tensor | Exception:
        """A batch as it is stored, uint8 (B, H, W, C), or what is wrong with a file of it.

        An error is returned and not raised, as it would come out of a process with its traceback.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                return torch.from_numpy(np.stack([self._read(*each) for each in request]))
        except (ValueError, OSError) as error:
            return type(error)(str(error))

    def _read(self, path: str, index: int) -> np.ndarray:
        picture = open_picture(path)
        if self.draw is None:
            return cut_middle(picture, self.how)
        seed = np.random.SeedSequence((*self.draw, index)).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(seed[0]))  # of the CPU alone
        return np.asarray(self._random(picture))

    def _random(self, picture: Any) -> Any:
        if self.cut is None:  # made here: a process that is not forked must import it, too
            v2 = import_vision("torchvision.transforms.v2")
            mode = v2.InterpolationMode(self.how.interpolation)
            crop = v2.RandomResizedCrop(self.how.crop, interpolation=mode, antialias=True)
            self.cut = v2.Compose([crop, v2.RandomHorizontalFlip()])
        return self.cut(picture)


def _leave_signals(worker: int) -> None:
    """Let the main process alone decide what Ctrl-C means, or a scheduler's SIGTERM to all.

    It has a step to finish and to save, and may need images for it. A worker ends with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
