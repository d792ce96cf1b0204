"""One subject from 4 to 20 pictures of it, after DreamBooth (Ruiz et al., arXiv 2208.12242), with low-rank adapters.

All pictures of the subject have one caption, in which a rare word stands before the word for its class. Half of the
samples are pictures of that class, drawn by the model itself before it learns the subject, so that other things of the
class stay as they were (prior preservation); their share is the weight of each part of the mixture.

On GPUs and TPUs for Next-DiT 2B (configs/next_dit_2b.py), on CPUs for a model of pixels that configs/emoji.py trained.
Run: lumina sample lumina_next "a photo of a dog" --config next_dit_2b --seeds 1,2,3,4 --out class
     lumina train finetune_subject --run.init-from lumina_next --data.mixture.0.path subject --data.mixture.1.path class
       --data.mixture.0.caption "a photo of zbx dog" --data.mixture.1.caption "a photo of a dog"
     lumina sample lumina_next "zbx dog in a bucket" --config next_dit_2b --adapter runs/finetune_subject
"""

import dataclasses

from lumina_jax.config import Config, FolderConfig, Part
from lumina_jax.config_files import load_config


def get_config(on_cpu: bool) -> Config:
    style = load_config("finetune_style", on_cpu)
    subject = FolderConfig(path="subject", caption="a photo of zbx dog")
    kept = FolderConfig(path="class", caption="a photo of a dog")
    mixture = (
        Part(source=subject, media=style.data.media, weight=0.5),
        Part(source=kept, media=style.data.media, weight=0.5),
    )
    return dataclasses.replace(
        style,
        data=dataclasses.replace(style.data, mixture=mixture),
        run=style.run.replace(
            name="finetune_subject", steps=800, evaluate_every=None, patience=None, sample_every=100,
            sample_prompts=("a photo of zbx dog", "zbx dog in a bucket", "a photo of a dog", "a dog in a bucket"),
        ),
    )  # fmt: skip
