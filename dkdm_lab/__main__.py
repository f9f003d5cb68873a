"""`python -m dkdm_lab`: the command line."""

import sys

from dkdm_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
