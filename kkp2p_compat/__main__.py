"""``python -m kkp2p_compat`` is ``kkp2p``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
