"""python -m lumina_jax COMMAND: what there is to do besides training and sampling.

parity FILE...   run recorded cases of the authors' models and compare
evaluate RUN     draw every caption of a run's data and count the pictures that match theirs
convert SRC DST  weights from one layout to another: the authors', diffusers', ours
aot CONFIG       compile for TPUs that are not here: does it fit, how fast can it be
data prepare NAME  fetch a free data set and make it ready for training
bench kernels    attention kernels against each other, compiled for TPUs that need not be there
"""

import importlib
import sys

COMMANDS = ("parity", "evaluate", "convert", "data", "bench", "aot")


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in COMMANDS:
        print(__doc__)
        raise SystemExit(0 if command in ("-h", "--help") else 2)
    raise SystemExit(importlib.import_module(f"lumina_jax.commands.{command}").main(sys.argv[2:]))


if __name__ == "__main__":
    main()
