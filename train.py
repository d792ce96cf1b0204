"""The command `lumina train`, from a clone that is not installed: python train.py emoji"""

import sys

from lumina_jax.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
