"""Captions to what steers the samples of a batch.

In: prompts, captions that all samples of a batch have, and settings. Out: a `Prompt`: features of texts, or labels,
with guidance scales and the time shift.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lumina_jax.config import Config, SampleConfig
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.generation.guided import Prompt
from lumina_jax.generation.request import label_of
from lumina_jax.tokens import TextFeatures

AnyCondition = TextFeatures | Int[Array, "_ 1"]


def condition_of(config: Config, encoder: TextEncoder | None, prompts: Sequence[str]) -> AnyCondition:
    """Features of the prompts; labels where there is no encoder."""
    if encoder is not None:
        return jax.tree.map(np.asarray, encoder.encode(prompts))  # on no device: the model may be on others
    return jnp.asarray([[label_of(prompt, config.model.classes)] for prompt in prompts])


def prompt_of(
    config: Config,
    encoder: TextEncoder | None,
    null: AnyCondition,
    prompts: Sequence[str],
    settings: SampleConfig,
    captions: Sequence[str | None],
) -> Prompt:
    """What steers a batch.

    Args:
      null: the condition of one empty prompt.
      captions: of all samples; None stands for the prompt of each.
    """

    def of(texts: Sequence[str]) -> AnyCondition:
        return condition_of(config, encoder, texts)

    def for_each(condition: AnyCondition) -> AnyCondition:
        return jax.tree.map(lambda x: jnp.repeat(x, len(prompts), axis=0), condition)

    scale, shift = jnp.float32(settings.guidance), jnp.float32(settings.time_shift)
    negative = of([settings.negative]) if settings.negative else null
    texts = (prompts if caption is None else [caption] * len(prompts) for caption in captions)
    condition, *others = [of(of_each) for of_each in texts]
    if settings.negative_scale is None:
        return Prompt(condition, for_each(negative), scale, shift, others=tuple(others))
    of_negative = for_each(negative), jnp.float32(settings.negative_scale)
    return Prompt(condition, for_each(null), scale, shift, *of_negative, others=tuple(others))
