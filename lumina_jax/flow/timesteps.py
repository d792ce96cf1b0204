"""Random times for training, and grids of times for samplers, from noise (t = 0) to data (t = 1).

In: random keys, numbers of steps. Out: float32 times. A time shift m moves times towards noise, t -> t / (t + m - m t),
which larger pictures need (Lumina-T2X, arXiv 2405.05945, section 2.3; m = 4 to 6 at 1024 px); m = 1 changes nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

ScalarTime = Float[jax.Array | np.ndarray | float, ""]


def training_times(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    *,
    distribution: str,
    interval: tuple[float, float] = (0.0, 1.0),
    shift: ScalarTime = 1.0,
) -> Float[Array, "..."]:
    """Independent times of `shape` within `interval`: uniform, or 'lognorm', the sigmoid of a standard normal."""
    sample = jax.random.uniform if distribution == "uniform" else jax.random.normal
    return times_from(sample(key, shape, jnp.float32), distribution=distribution, interval=interval, shift=shift)


def times_from(
    samples: Float[jax.Array | np.ndarray, "*shape"],
    *,
    distribution: str,
    interval: tuple[float, float] = (0.0, 1.0),
    shift: ScalarTime = 1.0,
) -> Float[Array, "*shape"]:
    """Times from samples of the underlying variable: uniform in [0, 1), or standard normal for 'lognorm'.

    The shift is applied to the unit interval, before that is scaled to `interval`, so that the ends stay where they
    are.

    Raises:
      ValueError: there is no such distribution.
    """
    if distribution not in ("uniform", "lognorm"):
        raise ValueError(f"{distribution=} of training times is unknown; choose 'uniform' or 'lognorm'")
    start, end = interval
    unit = jax.nn.sigmoid(samples) if distribution == "lognorm" else jnp.asarray(samples)
    return shifted(unit, shift) * (end - start) + start


def shifted(t: Float[jax.Array | np.ndarray, "*shape"], shift: ScalarTime) -> Float[Array, "*shape"]:
    """t / (t + m - m t) for a shift m > 0, which may be traced."""
    return jnp.asarray(t / (t + shift - shift * t))


def sampling_grid(
    steps: int,
    *,
    interval: tuple[ScalarTime, ScalarTime] = (0.0, 1.0),
    shift: ScalarTime = 1.0,
    strength: float = 1.0,
) -> Float[Array, " n"]:
    """The `steps` + 1 times of `steps` intervals, evenly spaced before the shift; reversed, it leads to noise.

    The released samplers count the times, not the intervals: their num_steps is `steps` + 1.

    Args:
      interval: the first and last time before the shift; may be traced.
      shift: the time shift; may be traced.
      strength: keep only this last share of the grid, to start from a noised picture (the lower, the more of it stays):
        int((steps + 1) * (1 - strength)) times are dropped.

    Raises:
      ValueError: fewer than one interval is left.
    """
    skipped = int((steps + 1) * (1 - strength))
    if steps < 1 or not 0 < strength <= 1 or skipped >= steps:
        raise ValueError(
            f"a grid of {steps=} at {strength=} has no interval; take 0 < strength <= 1 and at least one step within it"
        )
    start, end = interval
    return shifted(jnp.linspace(start, end, steps + 1, dtype=jnp.float32), shift)[skipped:]
