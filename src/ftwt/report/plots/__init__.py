"""The figures: functions that return matplotlib figures, a list of all, and all as files.

Each draws the rows of a function in `rows` or `rows_of_run`, and nothing else:

| figure | data |
|---|---|
| `accuracy`, `curve`, `latency`, `corruptions` | `accuracy_rows`, `curve_rows`, ... |
| `contest`, `contests` | `contest_rows` |
| `keep_ratios`, `core_filters` | `unit_rows` |
| `training` | `training_rows` |
| `heatmaps` | `heatmap_rows` |
| `work`, `classes` | `work_rows`, `class_rows` |
| `extremes` | `extreme_rows` |
"""

from .contest import contest as contest
from .contest import contests as contests
from .images import classes as classes
from .images import extremes as extremes
from .images import heatmaps as heatmaps
from .images import work as work
from .layers import core_filters as core_filters
from .layers import keep_ratios as keep_ratios
from .layers import training as training
from .results import accuracy as accuracy
from .results import corruptions as corruptions
from .results import curve as curve
from .results import latency as latency
from .save import save_figure as save_figure
from .save import save_figures as save_figures
from .sheets import Sheet as Sheet
from .sheets import sheets as sheets
