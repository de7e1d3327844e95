"""`python -m modeling_taae` is the command `taae`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
