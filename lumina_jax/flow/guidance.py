"""Classifier-free guidance: v = v_null + s (v_text - v_null), or away from a third caption as well.

In: the network's outputs with the caption and with the empty one. Out: the guided output.
Lumina-T2X (arXiv 2405.05945), section 2.3; the released models were sampled with only their first 3 latent channels
guided, which `guided_channels=3` repeats.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Patches = Float[jax.Array, "b l p"]
GuidanceScale = Float[jax.Array | np.ndarray | float, ""] | Float[jax.Array | np.ndarray, " b"]


def guide(
    conditional: Patches,
    unconditional: Patches,
    scale: GuidanceScale,
    *,
    patch_size: int,
    guided_channels: int | None = None,
    negative: Patches | None = None,
    negative_scale: GuidanceScale = 0.0,
) -> Float[Array, "b l p"]:
    """The guided output; channels that are not guided keep the conditional output.

    With `negative` it is v_null + s (v_text - v_null) - n (v_negative - v_null), as if the negative were composed with
    the weight -n (Liu et al., arXiv 2206.01714, section 4.3).

    Args:
      conditional, unconditional: outputs for the caption and for the empty one, patch values ordered
        (channel, row, column).
      scale: s, one for all or one for each row of the batch; may be traced. 1: no guidance.
      guided_channels: the number of leading channels that are guided; None: all.
      negative: the output for what must not be shown; None: there is none.
      negative_scale: n, as `scale`.

    Raises:
      ValueError: `guided_channels` is not between 1 and the channels of a patch.
    """
    chex.assert_equal_shape([conditional, unconditional])
    guided = unconditional + _over(scale, conditional) * (conditional - unconditional)
    if negative is not None:
        chex.assert_equal_shape([conditional, negative])
        guided -= _over(negative_scale, conditional) * (negative - unconditional)
    if guided_channels is None:
        return guided
    return _first_channels(guided, conditional, guided_channels, patch_size)


def guide_doubled(
    outputs: Float[Array, "b2 l p"],
    scale: GuidanceScale,
    *,
    patch_size: int,
    guided_channels: int | None = None,
) -> Float[Array, "b2 l p"]:
    """Guidance of a batch whose first half is conditional and whose second half is the same rows unconditional.

    Both halves of the result are guided alike, so that they stay the same sample. In channels that are not guided,
    each half keeps its output.

    Raises:
      ValueError: the batch is odd, or as `guide`.
    """
    if outputs.shape[0] % 2:
        raise ValueError(f"a doubled batch has an even number of rows, but {outputs.shape=}; stack [caption; empty]")
    conditional, unconditional = jnp.split(outputs, 2)
    guided = guide(conditional, unconditional, scale, patch_size=patch_size)
    both = jnp.concatenate([guided, guided])
    return both if guided_channels is None else _first_channels(both, outputs, guided_channels, patch_size)


def _over(scale: GuidanceScale, values: Patches) -> Float[Array, "..."]:
    """The scale, so that it broadcasts against patches."""
    scale = jnp.asarray(scale, values.dtype)
    chex.assert_rank(scale, {0, 1})
    return scale.reshape((*scale.shape, 1, 1)) if scale.ndim else scale


def _first_channels(guided: Patches, rest: Patches, channels: int, patch_size: int) -> Float[Array, "b l p"]:
    """`guided` in the first channels, `rest` in those after them."""
    values = channels * patch_size**2
    if not 0 < values <= guided.shape[-1]:
        raise ValueError(
            f"guided_channels={channels} must be between 1 and the {guided.shape[-1] // patch_size**2} channels of "
            f"patches of {guided.shape[-1]} values at {patch_size=}; None guides all"
        )
    return jnp.concatenate([guided[..., :values], rest[..., values:]], axis=-1)
