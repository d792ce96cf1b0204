"""lumina bench COMMAND: how fast it is

train CONFIG           a training step on the devices that are here: tokens and samples a second, utilisation, memory
sample CONFIG          a batch of samples, drawn on the devices that are here
kernels                compare attention kernels, compiled for TPUs that are not here

Each command explains its flags with --help.
"""

from collections.abc import Sequence

from lumina_jax.commands import run_command

COMMANDS = ("train", "sample", "kernels")


def main(words: Sequence[str]) -> int:
    return run_command(words, "lumina bench", COMMANDS, str(__doc__))
