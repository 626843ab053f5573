"""`python -m ftwt`: the command line, as `torchrun -m ftwt` wants it."""

import sys

from .cli import main

sys.exit(main())
