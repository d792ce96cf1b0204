"""Samples in the style of another: each is drawn beside a reference, whose keys and values it sees.

In: a batch of samples and the reference of each. Out: rows that hold a sample and then its reference, as two segments.
Both are drawn together, so that a sample depends on its reference and not on its neighbours, whatever solver and
mesh draw it. How attention is shared: `models/shared_attention.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lumina_jax.config import SampleConfig
from lumina_jax.generation.editing import Edit
from lumina_jax.generation.guided import Prompt
from lumina_jax.generation.originals import Source, check_whole
from lumina_jax.generation.request import check_reversible
from lumina_jax.modalities import Modality, Shape
from lumina_jax.models.shared_attention import REFERENCE
from lumina_jax.tokens import TextFeatures, Tokens


class StyleOf(NamedTuple):
    """What the samples of a call are to look like."""

    of: int | Source
    """The index of one of them, or a sample or latents from elsewhere."""
    caption: str = ""
    """What `of` shows, if it is from elsewhere."""
    strength: float = 1.0
    """How strongly they attend to it, from 0 to 1."""


class Reference(NamedTuple):
    """What is drawn beside each sample of a batch; all of it may be traced."""

    noise: Float[jax.Array | np.ndarray, "b f h w c"]
    keys: Key[Array, " b"]
    """For the noise of the stochastic solvers."""
    prompt: Prompt
    edit: Edit | None
    """There is one where the samples have one."""
    strength: Float[jax.Array | np.ndarray, " b"]
    """How strongly each sample attends to its reference; that which is the reference itself does not."""


def check_reference(
    style: StyleOf | None, invert: Any, settings: SampleConfig, shapes: Sequence[Shape], modality: Modality
) -> None:
    """Refuse a style that cannot be taken, and a source whose noise cannot be found.

    Args:
      invert: the captions of sources whose noise is wanted; None: there are none.

    Raises:
      ValueError: there is no sample of that index, a caption is for one of them, a strength is outside 0 to 1, samples
        have several sizes, or a solver cannot find the noise of a source.
    """
    if invert is not None or (style is not None and not isinstance(style.of, int)):
        check_reversible(settings)
    if style is None:
        return
    if settings.merge_tokens > 1:
        raise ValueError(
            f"samples in one style see each patch of a reference, but sample.merge_tokens={settings.merge_tokens} "
            "merges patches; set it to 1"
        )
    if not 0 <= style.strength <= 1:  # also of what is no number
        raise ValueError(f"the strength of a style must be between 0 and 1, but is {style.strength}")
    if len(set(shapes)) > 1:
        raise ValueError(
            f"samples in one style must have one size, but have {len(set(shapes))}; ask for one size for all of them"
        )
    if not isinstance(style.of, int):
        check_whole(style.of, modality, shapes[0])
        return
    if not 0 <= style.of < len(shapes):
        raise ValueError(
            f"the style is that of sample {style.of}, but samples have the indices 0 to {len(shapes) - 1}; name one of "
            "them, or a file"
        )
    if style.caption:
        raise ValueError(f"sample {style.of} has its prompt; a caption such as {style.caption!r} is for a file")


def tokens_beside(tokens: Tokens, of_reference: Tokens, *, is_apart: bool) -> Tokens:
    """Rows of samples, each followed by its reference.

    Args:
      is_apart: positions of the reference go on behind those of the sample, to the right of it, which leaves its
        attention to itself as it is where that depends on differences of positions. At the same positions, samples
        take over the layout of their reference.
    """
    positions = jnp.asarray(of_reference.positions)
    if is_apart:
        index, column = tokens.positions.shape[1], jnp.max(jnp.asarray(tokens.positions)[..., 3]) + 1
        positions = positions + jnp.stack([jnp.int32(index), jnp.int32(0), jnp.int32(0), column])
    second = of_reference.segment_ids * REFERENCE
    return beside(tokens, of_reference._replace(positions=positions, segment_ids=second))


def prompt_beside(prompt: Prompt, reference: Reference) -> Prompt:
    """What steers samples and their references."""

    def texts(of_sample: Any, of_reference: Any) -> Any:
        if isinstance(of_sample, TextFeatures):
            second = of_reference.segment_ids * REFERENCE
            return beside(of_sample, of_reference._replace(segment_ids=second))
        return beside(of_sample, of_reference)

    other = reference.prompt
    return prompt._replace(
        condition=texts(prompt.condition, other.condition),
        null=texts(prompt.null, other.null),
        negative=None if prompt.negative is None else texts(prompt.negative, other.negative),
        others=tuple(map(texts, prompt.others, other.others)),
        sharing=jnp.asarray(reference.strength),
    )


def beside(of_sample: Any, of_reference: Any) -> Any:
    """Trees of arrays [b l ...], one behind the other along l."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), of_sample, of_reference)
