"""python -m lumina_jax COMMAND: what there is to do besides training and sampling.

parity FILE...   run recorded cases of the authors' models and compare
evaluate RUN     draw every caption of a run's data and count the pictures that match theirs
convert SRC DST  weights from one layout to another: the authors', diffusers', ours
aot CONFIG       compile for TPUs that are not here: does it fit, how fast can it be
data prepare NAME  fetch a free data set and make it ready for training
bench kernels    attention kernels against each other, compiled for TPUs that need not be there

Training and sampling are programs at the top of the repository: python train.py CONFIG, python sample.py RUN PROMPT.
Each of them and each command explains its flags with --help.
"""

import importlib
import runpy
import sys
from pathlib import Path

COMMANDS = ("parity", "evaluate", "convert", "data", "bench", "aot")
PROGRAMS = ("train", "sample")


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in PROGRAMS:
        run_program(command, sys.argv[2:])
    elif command in ("-h", "--help"):
        print(__doc__)
    elif command not in COMMANDS:
        print(f"error: {command!r} is no command of lumina_jax\n\n{__doc__}", file=sys.stderr)
        raise SystemExit(2)
    else:
        raise SystemExit(importlib.import_module(f"lumina_jax.commands.{command}").main(sys.argv[2:]))


def run_program(name: str, words: list[str]) -> None:
    """train.py or sample.py of the repository that this package lies in."""
    file = Path(__file__).parents[1] / f"{name}.py"
    if not file.is_file():
        print(
            f"error: {name}.py is not part of the installed package, but lies in the repository of lumina_jax; clone "
            f"it and run there: python {name}.py",
            file=sys.stderr,
        )
        raise SystemExit(2)
    sys.argv = [str(file), *words]
    runpy.run_path(str(file), run_name="__main__")


if __name__ == "__main__":
    main()
