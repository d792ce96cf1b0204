"""A trained run, opened for drawing.

In: the folder of a run. Out: a pipeline with the averaged parameters of one of its checkpoints, on this machine's
devices, whatever mesh they were trained on.
"""

from pathlib import Path

import jax
from flax import nnx

from lumina_jax.config import Config
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.generation.sheets import encoder_of, new_pipeline
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.run import CHECKPOINTS, read_run
from lumina_jax.training.checkpoint import Checkpoints


def open_run(folder: str | Path, step: int | None = None) -> tuple[Pipeline, int]:
    """The pipeline of a run, and the step its parameters are from: the newest, or the one asked for.

    Raises:
      ValueError: the folder holds no run, or no such checkpoint.
    """
    config: Config = read_run(folder)
    checkpoints = Checkpoints(Path(folder) / CHECKPOINTS, read_only=True)
    step = checkpoints.latest() if step is None else step
    if step is None:
        raise ValueError(f"{folder} has no checkpoint yet; train it further")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        nnx.to_pure_dict(abstract_model(config.model)[1]),
    )
    parameters = checkpoints.restore_subtree(step, "ema", abstract)
    return new_pipeline(config, parameters, encoder_of(config)), step
