"""``python -m minitransformers`` is the command ``minitransformers``."""

import sys

from minitransformers.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
