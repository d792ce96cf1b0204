"""The loss of each sample of a batch of packed rows.

In: the network's output for tokens [b l p], the noise, data and times of its input, and the sample of each token.
Out: the mean over the patch elements of each sample [b s]. Samples count equally, whatever their size: the loss of a
batch is the mean over samples, not over tokens (Lumina-T2X, arXiv 2405.05945, eq. 4; weightings of SiT,
arXiv 2401.08740, section 2.3; data prediction with the velocity loss: JiT, arXiv 2511.13720, section 3).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lumina_jax.flow.paths import PREDICTIONS, Path, interpolate, over, wronskian
from lumina_jax.flow.schedule import step_at
from lumina_jax.flow.variational import variational_bits
from lumina_jax.tokens.grid import Kind
from lumina_jax.tokens.packing import spread

WEIGHTINGS = ("none", "velocity", "likelihood")
LAST_WEIGHTED_TIME = 0.95
"""The weight of a data prediction is infinite at t = 1; from here on it stays what it is, as in JiT."""
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
    fraction: Float[Array, "b l p"] | None = None,
    patch_values: Int[AnyArray, "b l"] | None = None,
    over_row: Callable[[Array], Array] = lambda count: count,
) -> Losses:
    """The loss of each sample, in float32.

    Velocity: |output - v|^2. Noise: w |output - x0|^2. Score: w |sigma output + x0|^2. Data: w |output - x1|^2. The
    weight w is 1 ('none'), (W / alpha)^2 ('velocity', which makes it the velocity loss) or W / (alpha sigma)
    ('likelihood'); of data (W / sigma)^2 or W alpha / sigma^3, until `LAST_WEIGHTED_TIME`.

    Args:
      x0, x1: patches of noise and of data, between which x_t was interpolated.
      t: the time of each sample.
      kinds: the `Kind` of each token; only patches count.
      segment_ids: 0 for padding, else the number of the sample in its row, from 1.
      fraction: of a network on the 'ddpm' path, its variance, -1 for the least and 1 for the largest; a term of the
        variational bound (`variational.py`), which teaches nothing else, is added to the loss.
      patch_values: for each token, the number of leading values of its patch that count; None: all.
      over_row: the sum over the devices that share the tokens of a row; each then gets its part of the loss.

    Raises:
      ValueError: a weighting is given for a velocity, which has none, or a fraction for anything but noise on 'ddpm'.
    """
    _check(path, prediction, weighting, fraction is not None)
    chex.assert_rank([output, t], [3, 2])
    chex.assert_equal_shape([output, x0, x1])
    chex.assert_equal_shape_prefix([output, t], 1)
    t = jnp.asarray(t, jnp.float32)
    output = output.astype(jnp.float32)
    if prediction in ("noise", "data"):
        errors = output - (x0 if prediction == "noise" else x1)
    else:
        token_times = over(spread(t, segment_ids), x1)
        if prediction == "velocity":
            errors = output - interpolate(path, x0, x1, token_times).velocity
        else:
            errors = output * path.coefficients(token_times).sigma + x0
    squares = errors**2
    if fraction is not None:
        squares += variational_bits(jax.lax.stop_gradient(output), fraction, x0, x1, step_at(spread(t, segment_ids)))
    losses = sample_means(
        squares, kinds, segment_ids, segments=t.shape[1], patch_values=patch_values, over_row=over_row
    )
    if weighting == "none":
        return losses
    weight = _weight(path, prediction, weighting, t)
    # A segment that no token belongs to may carry any time; its weight may be infinite.
    return losses._replace(per_sample=jnp.where(losses.present > 0, weight, 0) * losses.per_sample)


def _check(path: Path, prediction: str, weighting: str, learns_variance: bool) -> None:
    if prediction not in PREDICTIONS or weighting not in WEIGHTINGS:
        raise ValueError(f"{prediction=} must be one of {sorted(PREDICTIONS)}, and {weighting=} one of {WEIGHTINGS}")
    if prediction == "velocity" and weighting != "none":
        raise ValueError(f"{weighting=} is for 'score', 'noise' and 'data'; the velocity loss has none")
    if learns_variance and (path.name != "ddpm" or prediction != "noise"):
        raise ValueError(f"a variance is learned with noise on the 'ddpm' path, not {prediction=} on {path.name!r}")


def _weight(path: Path, prediction: str, weighting: str, t: Float[Array, "b s"]) -> Float[Array, "b s"]:
    """The weight of the square of an error: of noise, or of data."""
    if prediction == "data":
        t = jnp.minimum(t, LAST_WEIGHTED_TIME)
        c = path.coefficients(t)
        ratio = wronskian(path, t) / c.sigma
        return ratio**2 if weighting == "velocity" else ratio * c.alpha / c.sigma**2
    c = path.coefficients(t)
    ratio = wronskian(path, t) / c.alpha
    return ratio**2 if weighting == "velocity" else ratio / c.sigma


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
