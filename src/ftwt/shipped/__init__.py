"""The trained networks that come with ftwt, by name. Needs no torch."""

from .catalogue import CONFIG as CONFIG
from .catalogue import MODEL as MODEL
from .catalogue import RUN as RUN
from .catalogue import WEIGHTS as WEIGHTS
from .catalogue import Name as Name
from .catalogue import find as find
from .catalogue import folder as folder
from .catalogue import names as names
from .catalogue import refuse_folder as refuse_folder
from .catalogue import result as result
