"""Run the command `mdssd` as `python -m mdssd`."""

import sys

from mdssd.cli import main

if __name__ == "__main__":
    sys.exit(main())
