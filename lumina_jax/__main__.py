"""lumina COMMAND, or python -m lumina_jax COMMAND

train CONFIG           train a model; the same command continues a run
sample RUN PROMPT...   draw from a trained run
demo [RUN...]          a page that draws as `lumina sample` does: previews, editing, regions, comparisons
evaluate RUN           draw every caption of a run's data, and count the samples that match theirs
evaluate-images A B    how near drawn pictures (B) are to real ones (A): Frechet distance, KID, precision and recall
watch RUN...           a page of curves, sheets and settings of runs while they train
gates RUN              how open each head is for the text, and a model without the text of closed ones
convert SRC DST        weights from one layout to another: the authors', diffusers', ours
data prepare NAME      fetch a free data set and make it ready for training
parity FILE...         run recorded cases of the authors' models and compare
aot CONFIG             compile for TPUs that are not here: does it fit, how fast can it be
bench train CONFIG     how fast the devices that are here train; bench sample: draw; bench kernels: attention
scaling COMMAND        from a grid of small runs to what a larger one will do

CONFIG is a .py or .json file, or the name of a configuration that comes with lumina_jax, such as emoji. Each command
explains its flags with --help.
"""

import sys

from lumina_jax.commands import run_command

COMMANDS = (
    "train",
    "sample",
    "demo",
    "evaluate",
    "evaluate-images",
    "watch",
    "gates",
    "convert",
    "data",
    "parity",
    "aot",
    "bench",
    "scaling",
)


def main() -> None:
    raise SystemExit(run_command(sys.argv[1:] or ["--help"], "lumina", COMMANDS, str(__doc__)))


if __name__ == "__main__":
    main()
