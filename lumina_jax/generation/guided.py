"""The guided network that a path follows, as a function of time and patches.

In: a model as graph and parameters, the tokens of a batch, and what steers its samples. Out: the guided output. Keys
and values of the texts are computed once, for all times. Where a sample has several captions, the mean of the outputs
for each of them is guided, with the shares that `composition.py` makes.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lumina_jax.config import Config, ModalityConfig, SampleConfig
from lumina_jax.flow import guidance, paths
from lumina_jax.generation import extrapolation
from lumina_jax.generation.clips import turned, windows_of
from lumina_jax.generation.editing import Output, Times
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.generation.following import Follower, followed
from lumina_jax.models.division import Division
from lumina_jax.models.flag_dit import Condition, FlagDiT
from lumina_jax.models.merged_attention import Merging, square_groups
from lumina_jax.parallel.mesh import axis_size
from lumina_jax.tokens import Grid, Kind, TextFeatures, Tokens, latent_grid, unpatchify

Rows = TypeVar("Rows")


class Task(NamedTuple):
    """What a program is compiled for."""

    graph: nnx.GraphDef
    config: Config
    trained: Extent
    """Of the latents of training."""
    modality_index: int = 0
    """The index of the modality in those of the model."""
    division: Division | None = None
    """How devices share the work; None: one has all of it."""
    follower: Follower | None = None
    """Who is told of samples while they are drawn; None: nobody."""

    @property
    def modality(self) -> ModalityConfig:
        return self.config.model.modalities[self.modality_index]


class Prompt(NamedTuple):
    """What steers the samples of a batch; all of it may be traced."""

    condition: TextFeatures | Int[Array, "b 1"]
    null: TextFeatures | Int[Array, "b 1"]
    guidance_scale: Float[Array, ""]
    time_shift: Float[Array, ""]
    negative: TextFeatures | Int[Array, "b 1"] | None = None
    """What has a scale of its own; None: nothing."""
    negative_scale: Float[Array, ""] | None = None
    strength: Float[Array, ""] | None = None
    """Of an edit; None: samples are drawn from noise alone."""
    others: tuple[TextFeatures | Int[Array, "b 1"], ...] = ()
    """Further captions of each sample."""
    sharing: Float[Array, " b"] | None = None
    """How strongly each sample attends to the reference behind it; None: there are none."""


def guided_output(
    task: Task,
    settings: SampleConfig,
    parameters: dict,
    size: Extent,
    tokens: Tokens,
    prompt: Prompt,
    shares: tuple[Float[Array, "b l p"], ...] = (),
    *,
    keep_sigma: bool = False,
) -> Output:
    """The guided network as a function of time and patches; zero at markers.

    With `keep_sigma` its output has twice the values, of which the second half, the variance, is not guided. `shares`
    are those of `prompt.condition` and of each of `prompt.others` in the values of patches; empty: it is alone.
    """
    division = task.division
    model: FlagDiT = nnx.merge(task.graph, parameters) if division is None else division.model(parameters)
    captions = [prompt.condition, *prompt.others]
    conditions = [*captions, prompt.null, *([] if prompt.negative is None else [prompt.negative])]
    call, encoded = _network(task, settings, model, size, tokens, prompt.sharing, keep_sigma=keep_sigma)
    every, alone, counts = encoded(conditions), encoded(captions), counts_of(tokens, task)
    guided_channels = settings.guided_channels
    if keep_sigma and guided_channels is None:
        guided_channels = task.modality.channels

    def of_samples(patches: Float[Array, "b l p"]) -> Float[Array, "b f h w c"]:
        """The latents of samples, without those of references behind them."""
        return latents_of_patches(patches, latent_grid_of(task, size), task)

    def output(t: Times, x: Float[Array, "b l p"]) -> Float[Array, "b l o"]:
        def plain() -> Float[Array, "b l o"]:
            return counts * _mean(call(t, x, alone, len(captions)), shares)

        def guided() -> Float[Array, "b l o"]:
            outputs = call(t, x, every, len(conditions))
            without_text, *negative = outputs[len(captions) :]
            return counts * guidance.guide(
                _mean(outputs[: len(captions)], shares),
                without_text,
                prompt.guidance_scale,
                patch_size=task.modality.patch_size,
                guided_channels=guided_channels,
                negative=negative[0] if negative else None,
                negative_scale=0.0 if prompt.negative_scale is None else prompt.negative_scale,
            )

        is_plain = prompt.guidance_scale == 1
        if prompt.negative_scale is not None:
            is_plain &= prompt.negative_scale == 0
        # What a branch returns is stored. A product after it would be compiled into the sums of the solver, which would
        # then round otherwise than those of a drawing that is followed.
        return jax.lax.cond(is_plain, plain, guided)

    if task.follower is None:
        return output
    return followed(output, task.follower, paths.path(task.config.flow.path), task.config.flow.prediction, of_samples)


def _network(
    task: Task,
    settings: SampleConfig,
    model: FlagDiT,
    size: Extent,
    tokens: Tokens,
    sharing: Float[Array, " b"] | None,
    *,
    keep_sigma: bool,
) -> tuple[Callable[..., list[Float[Array, "n l o"]]], Callable[..., Condition]]:
    """The network as a function of time, patches, encoded conditions and their number, and what encodes conditions."""
    config, path, segments = task.config, paths.path(task.config.flow.path), 1 if sharing is None else 2
    length = latent_grid_of(task, size).length
    windows = windows_of(settings, size.frames, length)
    seen, of_row = (size, 1) if windows is None else (size._replace(frames=windows.frames), len(windows.starts))
    factor = extrapolation.rope_factor(settings, config.model, seen, task.trained)
    target = extrapolation.rope_target(settings, config.model, task.modality, task.trained)
    base_length = extrapolation.base_length(settings, config.model, task.modality, seen, task.trained)
    of_devices = 1 if task.division is None else axis_size(task.division.mesh, "sequence")

    def call(
        t: Float[Array, ""] | Float[Array, " n"], x: Float[Array, "n l p"], condition: Condition, copies: int
    ) -> list[Float[Array, "n l o"]]:
        """The outputs for each of as many captions as there are copies of the samples."""
        row_t = jnp.repeat(_rows([t] * copies), of_row) if t.ndim else t
        shown = tokens._replace(patches=x)
        if settings.loop:
            shown = shown._replace(positions=turned(tokens, size.frames, length, settings.steps, t))
        rows = _rows([shown] * copies)
        rows = rows if windows is None else windows.cut(rows)
        rope = extrapolation.rope_scaling(factor, settings.rope_watershed, row_t, target)
        times = jnp.broadcast_to(jnp.reshape(path.network_time(row_t), (-1, 1)), (len(rows.patches), segments))
        shared = None if sharing is None else _rows([sharing] * copies)
        asked: dict[str, Any] = {"rope": rope, "base_length": base_length, "keep_sigma": keep_sigma, "sharing": shared}
        if settings.merge_tokens > 1:
            row_length = rows.patches.shape[1] * of_devices
            groups = square_groups(latent_grid_of(task, seen), row_length, settings.merge_tokens)
            asked["merging"] = Merging(row_t < settings.merge_until, groups)
        found = model(rows, times, condition, **asked)
        return jnp.split(found if windows is None else windows.joined(found), copies)

    def encoded(conditions: Sequence[TextFeatures | Int[Array, "n s"]]) -> Condition:
        return _encoded(model, conditions, segments, of_row)

    return call, encoded


def latent_grid_of(task: Task, size: Extent) -> Grid:
    """The grid of the tokens of a sample."""
    model = task.config.model
    marks = {"nextline": model.nextline, "nextframe": model.nextframe}
    return latent_grid(*size, patch_size=task.modality.patch_size, **marks)


def latents_of_patches(patches: Float[Array, "b l p"], grid: Grid, task: Task) -> Float[Array, "b f h w c"]:
    """The latents of the first tokens of rows."""
    return unpatchify(patches[:, : grid.length, : task.modality.patch_values], grid, task.modality.patch_size)


def counts_of(tokens: Tokens, task: Task) -> Float[Array, "b l _"]:
    """1 for the values of patches, 0 at markers and where a patch is filled up."""
    is_patch = jnp.asarray(tokens.kinds == Kind.PATCH, jnp.float32)[:, :, None]
    if not task.config.model.others:
        return is_patch
    return is_patch * (jnp.arange(task.config.model.patch_values) < task.modality.patch_values)


def _encoded(
    model: FlagDiT, conditions: Sequence[TextFeatures | Int[Array, "n s"]], segments: int, copies: int
) -> Condition:
    """The conditions one after another, each of them `copies` times, with keys and values of texts."""
    rows = _rows(conditions)
    rows = rows if copies == 1 else jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), rows)
    return model.encode_text(rows, segments) if isinstance(rows, TextFeatures) else rows


def _rows(trees: Sequence[Rows]) -> Rows:
    """The rows of the first, those of the second, and so on."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def _mean(outputs: Sequence[Float[Array, "b l o"]], shares: Sequence[Float[Array, "b l p"]]) -> Float[Array, "b l o"]:
    """The mean of the outputs for each caption; a variance beside the prediction has the same shares."""
    if not shares:
        (output,) = outputs
        return output
    parts = [jnp.tile(share, output.shape[-1] // share.shape[-1]) * output for share, output in zip(shares, outputs)]
    return functools.reduce(operator.add, parts)
