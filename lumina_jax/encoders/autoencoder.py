"""Frozen autoencoders of pictures and sounds: loading them, running them on a mesh, and drawing latents.

In: a network with `encode` and `decode`, and arrays with a batch axis first and channels last. Out: the distribution of
latents, and latents "scaled" as diffusion models use them, which is (z - shift) * scaling.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from lumina_jax.parallel.mesh import axis_size, row_spec
from lumina_jax.weights.modules import load_module, named_parameters
from lumina_jax.weights.rules import Rule

AnyArray = Array | np.ndarray
Module = TypeVar("Module", bound=nnx.Module)


@runtime_checkable
class LatentConfig(Protocol):
    """What the configurations of all autoencoders have."""

    @property
    def factor(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def shift(self) -> float: ...
    @property
    def scaling(self) -> float: ...


class Posterior(NamedTuple):
    """The normal distribution of each value of a latent, before scaling."""

    mean: Float[AnyArray, "b *s c"]
    log_variance: Float[AnyArray, "b *s c"]


class FrozenAutoencoder:
    """A loaded autoencoder; `encode` and `decode` are compiled once for each shape of a batch.

    Args:
      fingerprint: identifies weights and settings; it names the folder of cached latents.
      mesh: devices that each hold all parameters and share the rows of a batch; None: the default device.
    """

    def __init__(self, model: Any, config: LatentConfig, *, fingerprint: str, mesh: Mesh | None):
        self.factor, self.channels = config.factor, config.channels
        self.fingerprint = fingerprint
        self.devices = 1 if mesh is None else axis_size(mesh, "data", "fsdp")
        self._mesh = mesh
        self._shift, self._scaling = config.shift, config.scaling
        self._encode = functools.partial(jax.jit(type(model).encode), model)
        self._decode = functools.partial(jax.jit(type(model).decode), model)

    def sample(self, posterior: Posterior, key: Key[Array, ""]) -> Float[Array, "b *s c"]:
        """Draw scaled latents from their distribution."""
        noise = jax.random.normal(key, posterior.mean.shape)
        return self.scaled(posterior.mean + jnp.exp(posterior.log_variance / 2) * noise)

    def scaled(self, latents: Float[Any, "*b c"]) -> Any:
        """Convert latents of the network to the scale that diffusion models use."""
        return (latents - self._shift) * self._scaling

    def unscaled(self, latents: Float[Any, "*b c"]) -> Any:
        """Convert scaled latents back to those of the network."""
        return latents / self._scaling + self._shift

    def on_devices(self, x: AnyArray) -> Array:
        """Put a batch on the devices of the mesh: sharded by rows if they divide evenly, otherwise replicated."""
        if self._mesh is None:
            return jnp.asarray(x)
        spec = PartitionSpec() if len(x) % self.devices else row_spec(self._mesh)
        return jax.device_put(x, NamedSharding(self._mesh, spec))


def load_replicated(
    build: Callable[[], Module],
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    dtype: jnp.dtype,
    mesh: Mesh | None,
) -> Module:
    """Build a network and load its tensors, all of them on every device of the mesh; see `load_module`.

    Raises:
      ValueError: tensors are missing, unknown, of the wrong shape or not finite; the message names them.
    """
    shardings = None
    if mesh is not None:
        names = named_parameters(nnx.to_pure_dict(nnx.state(nnx.eval_shape(build))))
        shardings = dict.fromkeys(names, NamedSharding(mesh, PartitionSpec()))
    return load_module(build, tensors, rules, layers=1, dtype=dtype, shardings=shardings)


def fingerprint_of(settings: str, files: Iterable[Path]) -> str:
    """Hash settings and the contents of files to 16 hexadecimal digits."""
    total = hashlib.sha256(settings.encode())
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
