"""Training on arrays in memory: neither a source of data nor a run folder is needed.

In: a configuration, and batches of arrays with their captions or labels. Out: the loss of each step, and a pipeline
that draws. Each step is the one that `lumina train` takes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num

from lumina_jax.config import Config
from lumina_jax.encoders.configured import encoder_of
from lumina_jax.generation.pipeline import Pipeline, new_pipeline
from lumina_jax.generation.request import check_prompt
from lumina_jax.modalities import load_autoencoders
from lumina_jax.models.division import parameter_shardings
from lumina_jax.parallel.mesh import check_rows, check_tokens, configured_mesh
from lumina_jax.tokens import TextFeatures, latent_grid, pack
from lumina_jax.training.state import Parameters, averaged_parameters, create_state
from lumina_jax.training.step import TrainBatch, batch_shardings, train_step

Samples = Num[jax.Array | np.ndarray, "b h w c"] | Num[jax.Array | np.ndarray, "b f h w c"]
"""Pictures, or clips of f frames; channels last."""
Conditions = Sequence[str] | Sequence[int] | Int[jax.Array | np.ndarray, " b"]
"""Captions, or labels."""


class Trainer:
    """A model that is trained on arrays, with its optimiser and the moving average of its parameters.

    Args:
      config: the sections model, flow, text, vae, optimizer, mesh and sample count as in a run; of data, what samples
        are drawn, and the share of captions that is dropped; of run, the seed, and the steps of the schedule.
      parameters: those to start from, such as `parameters` of an opened pipeline; None: random, from run.seed.
    """

    def __init__(self, config: Config, parameters: Parameters | None = None):
        self.config = config
        self._mesh = configured_mesh(config.mesh)
        self._step = train_step(config, self._mesh)
        if parameters is not None:  # a copy, since the state uses them up
            laid = jax.device_put(parameters, parameter_shardings(config.model, self._mesh))
            parameters = jax.tree.map(jnp.copy, laid)
        self._state = create_state(config, self._mesh, parameters)
        self._encoder = encoder_of(config)

    def step(self, samples: Samples, conditions: Conditions, *, modality: str | None = None) -> float:
        """Take one step of the optimiser on a batch of samples of one size.

        Args:
          samples: what the model learns to draw: pixels from -1 to 1, latents, or spectrograms.
          conditions: the caption of each sample, or its label for a label-conditional model.
          modality: of the samples; None: the first of the model.

        Returns:
          The mean loss of the batch.

        Raises:
          ValueError: there is not a condition for each sample, or the model has other channels or patches.
        """
        batch = self._batch(np.asarray(samples), [*conditions], modality)
        laid = (jax.device_put(part, sharding) for part, sharding in zip(batch, batch_shardings(self._mesh)))
        self._state, metrics = self._step(self._state, TrainBatch(*laid))
        return float(metrics.loss)

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return int(self._state.step)

    @property
    def parameters(self) -> Parameters:
        """What trains, as the last step left it: all parameters, or those of `config.finetune` with its adapters.
        The next step reuses their memory; copy what must outlive it."""
        return self._state.parameters

    @property
    def pipeline(self) -> Pipeline:
        """Draws with the moving average of the parameters; after further steps, ask for it again."""
        self._pipeline.parameters = averaged_parameters(self._state, self.config.finetune)
        self._pipeline.step = self.steps
        return self._pipeline

    @functools.cached_property
    def _pipeline(self) -> Pipeline:
        return new_pipeline(self.config, None, self._encoder, load_autoencoders(self.config), self._mesh)

    def _batch(self, samples: np.ndarray, conditions: list[Any], name: str | None) -> tuple[Any, Any, Any]:
        """The fields of a `TrainBatch`, one sample to a row."""
        model = self.config.model
        index = model.modality_index(name)
        modality = model.modalities[index]
        samples = samples[:, None] if samples.ndim == 4 else samples
        _check_samples(samples, len(conditions), modality.channels, modality.patch_size)
        check_rows(len(samples), self._mesh, self.config.optimizer.accumulate)
        grid = latent_grid(
            *samples.shape[1:4], patch_size=modality.patch_size, nextline=model.nextline, nextframe=model.nextframe
        )
        check_tokens(grid.length, self._mesh)
        tokens, _ = pack(
            [[sample] for sample in samples.astype(np.float32)],
            row_tokens=grid.length,
            patch_size=[one.patch_size for one in model.modalities],
            nextline=model.nextline,
            nextframe=model.nextframe,
            modalities=[[index]] * len(samples) if model.others else None,
            patch_values=model.patch_values,
        )
        return tokens, self._conditions(conditions), np.ones((len(samples), 1), np.float32)

    def _conditions(self, conditions: list[Any]) -> TextFeatures | Int[np.ndarray, "b 1"]:
        """Captions as features, labels as numbers; some are dropped for classifier-free guidance."""
        for condition in conditions:
            check_prompt(self.config, str(condition))
        random = np.random.default_rng([self.config.run.seed, self.steps])
        is_dropped = random.random(len(conditions)) < self.config.data.caption_dropout
        if self._encoder is not None:
            captions = ["" if dropped else caption for caption, dropped in zip(conditions, is_dropped)]
            return self._encoder.encode(captions)
        labels = np.where(is_dropped, self.config.model.classes, np.array(conditions, np.int32))
        return labels.astype(np.int32)[:, None]


def _check_samples(samples: Num[np.ndarray, "..."], conditions: int, channels: int, patch_size: int) -> None:
    rule = f"samples must be floats [batch height width {channels}] or [batch frames height width {channels}]"
    if samples.ndim != 5 or samples.shape[-1] != channels or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"{rule}, but are {samples.dtype} {list(samples.shape)}; pixels go from -1 to 1")
    if samples.shape[2] % patch_size or samples.shape[3] % patch_size:
        raise ValueError(f"height and width must be multiples of {patch_size=}, but samples are {list(samples.shape)}")
    if not len(samples) or len(samples) != conditions:
        raise ValueError(f"each of the {len(samples)} samples needs a caption or label, but there are {conditions}")
