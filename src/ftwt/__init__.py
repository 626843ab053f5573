"""Per-input pruning for convolutional networks: compute only the filters that an input needs."""

from ftwt.convert import convert as convert
from ftwt.dynamic import DynamicModel as DynamicModel
from ftwt.estimate import Estimate as Estimate
from ftwt.estimate import estimate as estimate
from ftwt.evaluate import Evaluation as Evaluation
from ftwt.evaluate import evaluate as evaluate
from ftwt.macs import count_macs as count_macs
