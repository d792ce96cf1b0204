"""Draw from a trained run: python sample.py runs/emoji "red heart, noto style" "pizza, fluent style" """

import sys

from lumina_jax.commands.sample import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
