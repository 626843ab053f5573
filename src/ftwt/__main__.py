"""`python -m ftwt`: the command line, as `torchrun -m ftwt` wants it."""

import sys

from .cli import main

sys.argv[0] = "ftwt"  # what results say that they were made with
sys.exit(main())
