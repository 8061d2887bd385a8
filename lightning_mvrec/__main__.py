"""``python -m lightning_mvrec``, and with it ``torchrun -m lightning_mvrec``: the same as ``mvrec``."""

import sys

from lightning_mvrec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
