"""The 15 common corruptions of CIFAR-10-C: made here, or read from the published files."""

from .apply import CORRUPTIONS as CORRUPTIONS
from .apply import SEVERITIES as SEVERITIES
from .apply import check_corruption as check_corruption
from .apply import corrupt as corrupt
from .published import Published as Published
