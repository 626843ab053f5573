"""Images in memory or in files, and batches of them."""

from .batches import Batches as Batches
from .cifar import cifar10 as cifar10
from .cifar import cifar100 as cifar100
from .decoding import FileBatches as FileBatches
from .epochs import Epochs as Epochs
from .folder import ImageFiles as ImageFiles
from .folder import folder_classes as folder_classes
from .folder import has_layout as has_layout
from .folder import image_folders as image_folders
from .images import Images as Images
from .images import hold_out as hold_out
from .registry import load as load
from .subset import embedded as embedded
