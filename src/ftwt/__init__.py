"""Per-input pruning for convolutional networks: compute only the filters that an input needs."""

from ftwt.convert import convert as convert
from ftwt.dynamic import DynamicModel as DynamicModel
from ftwt.macs import count_macs as count_macs
