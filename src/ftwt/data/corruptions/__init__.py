"""The 15 common corruptions of CIFAR-10-C: made here, or read from the published files."""

from .corrupt import CORRUPTIONS as CORRUPTIONS
from .corrupt import SEVERITIES as SEVERITIES
from .corrupt import check_corruption as check_corruption
from .corrupt import corrupt as corrupt
from .published import Published as Published
