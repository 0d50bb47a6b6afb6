"""`python -m textgym`, which is the command `textgym`: launchers such as torchrun start a module."""

import sys

from textgym.cli import main

if __name__ == "__main__":
    sys.exit(main())
