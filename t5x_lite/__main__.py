"""Run the command line: `python -m t5x_lite` is the same as `t5x-lite`."""

import sys

from t5x_lite.cli import main

sys.exit(main())
