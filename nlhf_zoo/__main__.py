"""`python -m nlhf_zoo` is `nlhf-zoo`."""

import sys

from nlhf_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
