"""Figures and a page from result files alone: no network, no torch."""

from . import plots as plots
from .reading.read import Found as Found
from .reading.read import read as read
from .write import Report as Report
from .write import write_report as write_report
