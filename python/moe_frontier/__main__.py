"""``python -m moe_frontier`` is the program."""

import sys

from . import main

sys.exit(main())
