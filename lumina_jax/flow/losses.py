"""The loss of each sample of a batch of packed rows.

In: the network's output for tokens [b l p], the noise, data and times of its input, and the sample of each token.
Out: the mean over the patch elements of each sample [b s]. Samples count equally, whatever their size: the loss of a
batch is the mean over samples, not over tokens (Lumina-T2X, arXiv 2405.05945, eq. 4; weightings of SiT,
arXiv 2401.08740, section 2.3).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lumina_jax.flow.paths import PREDICTIONS, Path, interpolate, over, wronskian
from lumina_jax.tokens.grid import Kind
from lumina_jax.tokens.packing import spread

WEIGHTINGS = ("none", "velocity", "likelihood")
AnyArray = jax.Array | np.ndarray


class Losses(NamedTuple):
    """The loss of every sample, and 1 where there is a sample, 0 where a row has fewer samples than others."""

    per_sample: Float[Array, "b s"]
    present: Float[Array, "b s"]

    def mean(self) -> Float[Array, ""]:
        """The mean over the samples of the batch, 0 when it has none."""
        return jnp.sum(self.per_sample * self.present) / jnp.maximum(jnp.sum(self.present), 1)


def flow_loss(
    output: Float[Array, "b l p"],
    x0: Float[AnyArray, "b l p"],
    x1: Float[AnyArray, "b l p"],
    t: Float[AnyArray, "b s"],
    kinds: Int[AnyArray, "b l"],
    segment_ids: Int[AnyArray, "b l"],
    *,
    path: Path,
    prediction: str,
    weighting: str = "none",
    patch_values: Int[AnyArray, "b l"] | None = None,
    over_row: Callable[[Array], Array] = lambda count: count,
) -> Losses:
    """The loss of each sample, in float32.

    Velocity: |output - v|^2. Noise: w |output - x0|^2. Score: w |sigma output + x0|^2. The weight w is 1 ('none'),
    (W / alpha)^2 ('velocity', which makes it the velocity loss) or W / (alpha sigma) ('likelihood').

    Args:
      x0, x1: patches of noise and of data, between which x_t was interpolated.
      t: the time of each sample.
      kinds: the `Kind` of each token; only patches count.
      segment_ids: 0 for padding, else the number of the sample in its row, from 1.
      patch_values: for each token, the number of leading values of its patch that count; None: all.
      over_row: the sum over the devices that share the tokens of a row; each then gets its part of the loss.

    Raises:
      ValueError: a weighting is given for a velocity, which has none.
    """
    if prediction not in PREDICTIONS or weighting not in WEIGHTINGS:
        raise ValueError(f"{prediction=} must be one of {sorted(PREDICTIONS)}, and {weighting=} one of {WEIGHTINGS}")
    if prediction == "velocity" and weighting != "none":
        raise ValueError(f"{weighting=} is for 'score' and 'noise' predictions; the velocity loss has none")
    chex.assert_rank([output, t], [3, 2])
    chex.assert_equal_shape([output, x0, x1])
    chex.assert_equal_shape_prefix([output, t], 1)
    t = jnp.asarray(t, jnp.float32)
    output = output.astype(jnp.float32)
    if prediction == "noise":
        errors = output - x0
    else:
        token_times = over(spread(t, segment_ids), x1)
        if prediction == "velocity":
            errors = output - interpolate(path, x0, x1, token_times).velocity
        else:
            errors = output * path.coefficients(token_times).sigma + x0
    losses = sample_means(
        errors**2, kinds, segment_ids, segments=t.shape[1], patch_values=patch_values, over_row=over_row
    )
    if weighting == "none":
        return losses
    c = path.coefficients(t)
    ratio = wronskian(path, t) / c.alpha
    weight = ratio**2 if weighting == "velocity" else ratio / c.sigma
    # A segment that no token belongs to may carry any time; its weight may be infinite.
    return losses._replace(per_sample=jnp.where(losses.present > 0, weight, 0) * losses.per_sample)


def sample_means(
    values: Float[AnyArray, "b l p"],
    kinds: Int[AnyArray, "b l"],
    segment_ids: Int[AnyArray, "b l"],
    *,
    segments: int,
    patch_values: Int[AnyArray, "b l"] | None = None,
    over_row: Callable[[Array], Array] = lambda count: count,
) -> Losses:
    """The mean over the patch elements of each of the `segments` samples of a row; 0 where there is none.

    Args:
      patch_values, over_row: as for `flow_loss`.
    """
    chex.assert_rank(values, 3)
    chex.assert_equal_shape([kinds, segment_ids, *([] if patch_values is None else [patch_values])])
    chex.assert_equal_shape_prefix([values, kinds], 2)
    chex.assert_type([kinds, segment_ids], int)
    patches = (segment_ids[..., None] == jnp.arange(1, segments + 1)) & (kinds == Kind.PATCH)[..., None]
    if patch_values is None:
        token_means = jnp.mean(values, axis=-1)[..., None]
    else:
        counts = jnp.arange(values.shape[-1]) < patch_values[..., None]
        token_means = (jnp.sum(jnp.where(counts, values, 0), axis=-1) / jnp.maximum(patch_values, 1))[..., None]
    count = over_row(jnp.sum(patches, axis=1))
    sums = jnp.sum(jnp.where(patches, token_means, 0), axis=1)
    return Losses(sums / jnp.maximum(count, 1), (count > 0).astype(jnp.float32))
