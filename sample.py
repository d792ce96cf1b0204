"""The command `lumina sample`, from a clone that is not installed: python sample.py runs/emoji "red heart" """

import sys

from lumina_jax.commands.sample import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
