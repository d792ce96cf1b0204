"""Between two branches of a layer: what one adds to the activations, and what the next one reads of them.

In: activations [b l m], the output of a branch with its gate, and the norm, scale and shift of the next. Out:
activations [b l m] for both. One kernel for TPUs computes them (`kernels/residual.py`) where each row is one sample.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lumina_jax.kernels import residual
from lumina_jax.kernels.flash.call import refusal_here
from lumina_jax.models.layers import PlainLayerNorm, RMSNorm, normed
from lumina_jax.parallel.mesh import axis_size

OfSamples = Float[Array, "b _ m"]
"""A vector for each token, or one for all tokens of a row."""


class BranchOutput(NamedTuple):
    """What a branch adds: gate * y, or gate * norm(y)."""

    y: Float[Array, "b l m"]
    gate: OfSamples
    norm: RMSNorm | None = None
    kept_as: str | None = None
    """The name by which `model.remat` keeps y for the backward pass."""


class BranchInput(NamedTuple):
    """What a branch computes from: norm(x) * (1 + scale) + shift."""

    norm: RMSNorm | PlainLayerNorm
    scale: OfSamples
    shift: OfSamples | None = None


def between(
    x: Float[Array, "b l m"], output: BranchOutput | None, following: BranchInput | None, *, kernels: bool
) -> tuple[Float[Array, "b l m"], Float[Array, "b l m"]]:
    """The activations with what a branch adds, and what the next one computes from; None: there is no such branch.

    Args:
      kernels: those for TPUs may run.
    """
    if kernels and _served(x, output, following):
        out, z = residual.between_branches(x, _leaving(output), _entering(following))
        return out, out if z is None else z
    if output is not None:
        y = output.y if output.kept_as is None else checkpoint_name(output.y, output.kept_as)
        x = x + output.gate * normed(y, output.norm)
    if following is None:
        return x, x
    z = following.norm(x) * (1 + following.scale)
    return x, z if following.shift is None else z + following.shift


def _served(x: Float[Array, "b l m"], output: BranchOutput | None, following: BranchInput | None) -> bool:
    """Whether the kernel computes it where this is traced."""
    is_rms = following is None or isinstance(following.norm, RMSNorm)
    vectors = [None if output is None else output.gate, None if following is None else following.scale]
    is_of_rows = all(vector.shape[1] == 1 for vector in vectors if vector is not None)
    if not (is_rms and is_of_rows) or refusal_here(auto=True) or residual.refusal(x):
        return False
    # libtpu 0.0.42 has no program of 7B for v6e with the kernel and tokens that are divided: 64 KB of VMEM are missing.
    return axis_size(jax.sharding.get_abstract_mesh(), "sequence") == 1


def _leaving(output: BranchOutput | None) -> residual.Leaving | None:
    if output is None:
        return None
    norm = output.norm
    eps = None if norm is None else norm.eps
    return residual.Leaving(output.y, _weighted(output.gate, norm), eps, output.kept_as)


def _entering(following: BranchInput | None) -> residual.Entering | None:
    if following is None:
        return None
    norm, shift = following.norm, following.shift
    assert isinstance(norm, RMSNorm)
    factor = _weighted(1 + following.scale.astype(jnp.float32), norm)
    return residual.Entering(factor, None if shift is None else shift[:, 0].astype(jnp.float32), norm.eps)


def _weighted(factor: Float[Array, "b 1 m"], norm: RMSNorm | None) -> Float[Array, "b m"]:
    """The factor, float32, times the weight that a norm may have."""
    factor = factor[:, 0].astype(jnp.float32)
    return factor if norm is None or norm.weight is None else factor * norm.weight[...].astype(jnp.float32)
