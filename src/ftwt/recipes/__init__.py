"""Runs by name."""

from .registry import Recipe as Recipe
from .registry import describe as describe
from .registry import get as get
from .registry import names as names
