"""Train a Lumina model: python train.py configs/emoji.py [--section.field value ...]"""

import sys

from lumina_jax.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
