"""``python -m pyrovae`` is the command line."""

import sys

from pyrovae.cli import main

if __name__ == "__main__":  # a run folder may name any module of pyrovae
    sys.exit(main())
