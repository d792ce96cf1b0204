"""lumina bench COMMAND: how fast it is

train CONFIG           a training step on the devices that are here: tokens and samples a second, utilisation, memory
sample CONFIG          a batch of samples, drawn on the devices that are here
kernels                compare attention kernels, compiled for TPUs that are not here

Each command explains its flags with --help.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = ("train", "sample", "kernels")


def main(words: Sequence[str]) -> int:
    command = words[0] if words else ""
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in COMMANDS:
        print(f"error: {command!r} is no command of lumina bench\n\n{__doc__}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"lumina_jax.commands.bench.{command}")
    status: int = module.main(words[1:])
    return status
