"""Runs the command line with ``python -m hrp_lab``."""

from __future__ import annotations

import sys

from hrp_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
