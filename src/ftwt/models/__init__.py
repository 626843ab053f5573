"""Networks by name: our own for 32x32 images, torchvision's and timm's by prefix."""

from .registry import create as create
from .registry import names as names
