"""Tiny runs with random weights, saved at two steps: pictures, clips, views, grids of views, sounds and several of
them at once; and adapters for the run of pictures."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.config import (
    ClipConfig,
    DataConfig,
    EmojiConfig,
    ModalityConfig,
    Part,
    PictureConfig,
    SoundConfig,
    ViewGridConfig,
    ViewsConfig,
)
from lumina_jax.models.adapters import fingerprint, new_trained
from lumina_jax.run import CHECKPOINTS, run_folder, write_config
from lumina_jax.training.checkpoint import Checkpoints
from tests.generation.test_speech_run import speech_config
from tests.models.random_models import random_parameters
from tests.training.tiny import label_config

MEDIA = {
    "pictures": None,
    "clips": ClipConfig(frames=4, image_size=32),
    "views": ViewsConfig(frames=6, image_size=32),
    "grids": ViewGridConfig(frames=4, grid_columns=2, image_size=32),
}


def saved_run(root, kind="pictures"):
    """The folder of a run of a kind in MEDIA, of sounds, or of several kinds."""
    if kind == "several":
        settings = several_config(root)
    elif kind == "sounds":
        settings = speech_config(root, model={"text_layers": 0})
    else:
        settings = label_config(root)
        if MEDIA[kind] is not None:
            settings = settings.replace(data=settings.data.replace(media=MEDIA[kind]), model={"nextframe": False})
    settings = settings.replace(run={"name": kind, "root": str(root), "sample_every": None, "sample_prompts": ()})
    with contextlib.closing(Checkpoints(run_folder(settings) / CHECKPOINTS, keep=2)) as checkpoints:
        for step in (1, 2):
            trees = {"ema": random_weights(settings.model, step), "parameters": {"x": jnp.zeros(1)}}
            checkpoints.save(step, trees, {}, settings.to_json())
    write_config(settings)
    return run_folder(settings)


def several_config(root):
    """The settings of a run of pictures, clips and sounds."""
    settings, emoji = label_config(root), EmojiConfig(emoji_names=8)
    others = (
        ModalityConfig(name="video", patch_size=8, channels=3),
        ModalityConfig(name="speech", patch_size=1, channels=80),
    )
    mixture = (
        Part(source=emoji, media=PictureConfig(image_size=32)),
        Part(source=emoji, media=ClipConfig(frames=4, image_size=32), modality="video"),
        Part(source=emoji, media=SoundConfig(seconds=0.2), modality="speech"),
    )
    data = DataConfig(mixture=mixture, batch_rows=4, row_tokens=256, prefetch=4)
    return settings.replace(data=data, model={"others": others, "modality": "image"})


def saved_adapters(run, root):
    """The folders of two runs that have trained adapters of a run of pictures at step 2, of different ranks."""
    return [saved_adapter(run, root, name, rank) for name, rank in (("bold", 2), ("pale", 3))]


def saved_adapter(run, root, name, rank, *, sample=None, **finetune):
    """The folder of a run that has trained an adapter of a run of pictures at step 2."""
    settings = label_config(root).replace(
        finetune={"rank": rank, "parameters": ("attention",), **finetune},
        sample=sample or {},
        run={"name": name, "root": str(root), "init_from": str(run)},
    )
    base = random_weights(settings.model, 2)
    trained = new_trained(settings.finetune, base, jax.random.key(rank))
    random = np.random.default_rng(rank)
    moved = {
        name: factors._replace(b=random.standard_normal(factors.b.shape, np.float32))
        for name, factors in trained.items()
    }
    with contextlib.closing(Checkpoints(run_folder(settings) / CHECKPOINTS, keep=1)) as checkpoints:
        checkpoints.save(1, {"ema": moved, "base": {"fingerprint": fingerprint(base)}}, {}, settings.to_json())
    write_config(settings)
    return run_folder(settings)


def random_weights(model, step):
    """What the runs of pictures have at a step."""
    return jax.tree.map(lambda leaf: 0.3 * leaf, random_parameters(model, seed=step))
