"""python -m lumina_jax COMMAND: what there is to do besides training and sampling.

parity FILE...   run recorded cases of the authors' models and compare
evaluate RUN     draw every caption of a run's data and count the pictures that match theirs
"""

import sys

COMMANDS = ("parity", "evaluate")


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in COMMANDS:
        print(__doc__)
        raise SystemExit(0 if command in ("-h", "--help") else 2)
    if command == "parity":
        from lumina_jax.commands.parity import main as run
    else:
        from lumina_jax.commands.evaluate import main as run
    raise SystemExit(run(sys.argv[2:]))


if __name__ == "__main__":
    main()
