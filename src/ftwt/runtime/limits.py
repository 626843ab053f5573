"""What a program may cost at most: everything that takes memory or time is bounded.

Networks stay far below; a file from a stranger can ask for no more.
"""

from __future__ import annotations

import math

from .program import Convolution, Program

MAX_COUNT = 2**14  # of operations, of maps, of masks
MAX_SIZE = 2**24  # channels, rows or columns
MAX_STEP = 2**10  # stride, padding and dilation of a convolution
MAX_TAPS = 2**20  # positions in its kernel
MAX_MAP = 2**27  # elements of a map, with the zeros that a convolution pads it with
MAX_MAPS = 2**30  # elements of all maps of a sample together
MAX_LIVE = 2**28  # elements of the maps of a sample that are needed at the same time: 1 GiB
MAX_CHANNELS = 2**24  # of all maps and gates together
MAX_READS = 2**16  # maps that are read, all operations together
MAX_CONSTANT = 2**28  # elements of a constant
MAX_PLAN = 2**24  # what the engine notes down of a geometry: taps and vectors of all convolutions
MAX_STAGED = 2**28  # elements of an input that was laid out for a convolution
MAX_MACS = 2**43  # of a sample: minutes
MAX_POOLED = 2**36  # elements that the windows of all pools read, of a sample
MAX_ROW = 2**30  # elements that a row of windows reads
MAX_PRODUCTS = (2**31 - 1) // (255 * 127)  # of eight bits in a sum of 32 bits


def planned(taps: int, size: tuple[int, int]) -> int:
    """Return how many taps and vectors of outputs the engine notes down of a convolution."""
    return taps + size[0] * (size[1] // 16 + 2)


def staged(op: Convolution, channels: int, padded: tuple[int, int], taps: int) -> int:
    """Return how many elements the input of a convolution has when it is laid out for it.

    For a stride, that is one plane for each of its phases.
    """
    rows, columns = op.stride
    plane = -(-padded[0] // rows) * -(-padded[1] // columns) + 64
    return channels * min(taps, rows * columns) * plane


def read_by_row(size: tuple[int, int], out: tuple[int, int], kernel: tuple[int, int]) -> int:
    """Return how many elements a row of a pool's windows reads: rows first, then columns."""
    return min(kernel[0], size[0]) * size[1] + out[1] * kernel[1]


def most_alive(program: Program) -> int:
    """Return how many elements of maps a sample needs at the same time, at most."""
    last = {index: place for place, op in enumerate(program.operations) for index in op.reads}
    last[program.output] = len(program.operations)
    alive = most = math.prod(program.maps[0])
    for place, op in enumerate(program.operations):
        out = getattr(op, "out", None)
        if out is not None:
            alive += math.prod(program.maps[out])
        most = max(most, alive)
        gone = {index for index in op.reads if last[index] == place}
        if out is not None and out not in last:
            gone.add(out)
        alive -= sum(math.prod(program.maps[index]) for index in gone)
    return most
