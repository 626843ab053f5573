"""Images in memory, and batches of them."""

from .batches import Batches as Batches
from .cifar import cifar10 as cifar10
from .cifar import cifar100 as cifar100
from .images import Images as Images
from .images import hold_out as hold_out
from .registry import load as load
from .subset import embedded as embedded
