"""Compiled networks: programs, files of them, and engines that run them. Needs numpy alone."""

from .check import check as check
from .engine import Engine as Engine
from .engine import Stats as Stats
from .file import load_passes as load_passes
from .file import load_program as load_program
from .file import save as save
from .passes import Passes as Passes
from .program import Activate as Activate
from .program import Affine as Affine
from .program import Combine as Combine
from .program import Conv as Conv
from .program import Dequantize as Dequantize
from .program import Fixed as Fixed
from .program import Flatten as Flatten
from .program import Gate as Gate
from .program import Gather as Gather
from .program import Operation as Operation
from .program import Pool as Pool
from .program import Predict as Predict
from .program import Program as Program
from .program import QConv as QConv
from .program import Quantize as Quantize
from .program import Silence as Silence
from .second_look import Looks as Looks
from .second_look import SecondLookEngine as SecondLookEngine
from .second_look import load as load
