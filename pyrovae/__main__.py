"""``python -m pyrovae`` is the command line."""

import sys

from pyrovae.cli import main

sys.exit(main())
