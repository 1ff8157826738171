"""`python -m t5x_lite` is `t5x-lite`."""

import sys

from t5x_lite.cli import main

sys.exit(main())
