"""Run the command `mdssd` as `python -m mdssd`."""

import sys

try:
    from mdssd.cli import main
except KeyboardInterrupt:  # `main` says the same from here on
    print("mdssd: interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
