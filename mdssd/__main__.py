"""`python -m mdssd`: the same as the command `mdssd`."""

import sys

from mdssd.cli import main

if __name__ == "__main__":
    sys.exit(main())
