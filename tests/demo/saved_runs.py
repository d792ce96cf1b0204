"""Tiny runs with random weights, saved at two steps: pictures, clips, views, grids of views and sounds."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.config import ClipConfig, ViewGridConfig, ViewsConfig
from lumina_jax.interop.converted import parameter_shapes
from lumina_jax.interop.peft import Adapter
from lumina_jax.models.adapters import Factors
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
    """The folder of a run of a kind in MEDIA, or of sounds."""
    if kind == "sounds":
        settings = speech_config(root, model={"text_layers": 0})
    else:
        settings = label_config(root)
        if MEDIA[kind] is not None:
            settings = settings.replace(data=settings.data.replace(media=MEDIA[kind]), model={"nextframe": False})
    settings = settings.replace(run={"name": kind, "root": str(root), "sample_every": None, "sample_prompts": ()})
    with contextlib.closing(Checkpoints(run_folder(settings) / CHECKPOINTS, keep=2)) as checkpoints:
        for step in (1, 2):
            parameters = jax.tree.map(lambda leaf: 0.3 * leaf, random_parameters(settings.model, seed=step))
            checkpoints.save(step, {"ema": parameters, "parameters": {"x": jnp.zeros(1)}}, {}, settings.to_json())
    write_config(settings)
    return run_folder(settings)


def random_adapter():
    """An adapter for runs of pictures."""
    name = "blocks.attention.query.kernel"
    *front, rows, columns = parameter_shapes(label_config().model)[name]
    random = np.random.default_rng(0)
    factors = (random.standard_normal((*front, *shape)).astype(np.float32) for shape in ((rows, 2), (2, columns)))
    return Adapter({name: Factors(*factors)}, {name: 2.0}, False, base="")
