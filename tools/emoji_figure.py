"""Pictures of the model in the package beside the true ones: python tools/emoji_figure.py held_out docs/emoji.png

In: what `lumina data prepare emoji --size 64` made. Out: a sheet of captions of one of its splits, evenly over it; on
the left what the model draws, on the right the true picture.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from lumina_jax.commands.evaluate import true_samples
from lumina_jax.modalities.files.contact_sheet import contact_sheet
from lumina_jax.trained import open_run

GAP = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=("train", "held_out", "unknown"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=24, help="captions")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    pipeline = open_run("emoji")
    samples = true_samples(pipeline.config, 10_000, split=arguments.split)
    chosen = np.linspace(0, len(samples.prompts) - 1, arguments.count).astype(int)
    prompts = [samples.prompts[index] for index in chosen]
    drawn = pipeline(prompts, seed=arguments.seed)
    between = np.full((drawn[0].shape[1], GAP, 3), 255, np.uint8)
    pairs = [np.concatenate([one[0], between, samples.true[index][0]], axis=1) for one, index in zip(drawn, chosen)]
    Image.fromarray(contact_sheet(pairs, prompts)).save(arguments.file, optimize=True)


if __name__ == "__main__":
    main()
