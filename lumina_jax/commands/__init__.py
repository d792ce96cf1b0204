"""The commands of `lumina`, one a file or a folder; those of `bench` and `scaling` are files of a folder."""

import importlib
import sys
from collections.abc import Sequence


def run_command(words: Sequence[str], program: str, commands: Sequence[str], about: str) -> int:
    """Run the command that the words begin with; returns its status, or 2 if there is no such command.

    Args:
      program: its name, such as "lumina bench"; its commands are modules of a package of that name.
      about: what to print for --help.
    """
    command = words[0] if words else ""
    if command in ("-h", "--help"):
        print(about)
        return 0
    if command not in commands:
        print(f"error: {command!r} is no command of {program}\n\n{about}", file=sys.stderr)
        return 2
    package = ".".join(["lumina_jax.commands", *program.split()[1:]])
    status: int = importlib.import_module(f"{package}.{command.replace('-', '_')}").main(words[1:])
    return status
