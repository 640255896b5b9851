"""``python -m hrp`` is ``hrp``."""

from __future__ import annotations

import sys

from hrp.cli import main

if __name__ == "__main__":
    sys.exit(main())
