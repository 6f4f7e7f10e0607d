"""`python -m detbench`: the command line, where the console script is not installed."""

import sys

from detbench.cli import main

sys.exit(main())
