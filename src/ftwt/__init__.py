"""Per-input pruning for convolutional networks: compute only the filters that an input needs."""

from . import data as data
from . import models as models
from . import recipes as recipes
from .budget import Calibration as Calibration
from .checkpoint import from_pretrained as from_pretrained
from .checkpoint import push_to_hub as push_to_hub
from .checkpoint import save_pretrained as save_pretrained
from .config import DataConfig as DataConfig
from .config import PruneConfig as PruneConfig
from .config import RunConfig as RunConfig
from .config import TrainConfig as TrainConfig
from .convert import convert as convert
from .dynamic import DynamicModel as DynamicModel
from .estimate import Allocation as Allocation
from .estimate import Estimate as Estimate
from .estimate import estimate as estimate
from .evaluate import Evaluation as Evaluation
from .evaluate import evaluate as evaluate
from .macs import MacCount as MacCount
from .macs import count_macs as count_macs
from .run import run as run
from .train import TrainResult as TrainResult
from .train import train as train
