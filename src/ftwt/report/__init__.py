"""Figures and a page from result files alone: no network, no torch."""

from . import plots as plots
from .read import Found as Found
from .read import read as read
