"""The peak arithmetic of the devices that are here.

In: the devices of this process. Out: floating point operations a second of one device. That of a TPU, and of products
of bfloat16 on some GPUs, is published (`chips.py`); others are measured with a large matrix product.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.chips import GPU_PEAKS, Chip, chip_of_kind

SIDES = {"cpu": 1536, "gpu": 8192}
"""Rows and columns of the matrices of the measurement."""
TRIALS = 9


class Peak(NamedTuple):
    """The speed of one device at matrix products."""

    device: str
    flops: float
    """Multiplications and additions a second."""
    memory: float | None
    """Bytes of memory; None: not known, or shared with other programs."""
    source: str
    """Where the number is from."""


def present_chip() -> Chip | None:
    """The TPU chip that is here; None: there is none, or one that `chips.py` does not know."""
    return chip_of_kind(jax.devices()[0].device_kind)


def present_peak(dtype: str) -> Peak:
    """The peak of a device of this process for products of this type."""
    device, chip = jax.devices()[0], present_chip()
    if chip is not None:
        return Peak(device.device_kind, chip.flops, float(chip.hbm_usable), chip.source)
    if dtype == "bfloat16" and device.device_kind in GPU_PEAKS:
        published = GPU_PEAKS[device.device_kind]
        return Peak(device.device_kind, published.flops, _memory(device), published.source)
    side = SIDES.get(device.platform, SIDES["gpu"])
    rate = product_rate(side, dtype)
    return Peak(
        device.device_kind, rate, _memory(device), f"a product of {dtype} matrices of {side} x {side}, measured"
    )


def product_rate(side: int, dtype: str, trials: int = TRIALS) -> float:
    """Multiplications and additions a second of a product of square matrices on one device: the fastest of `trials`
    products after one that compiles."""
    left, right = (jax.random.normal(jax.random.key(seed), (side, side)).astype(dtype) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    times = []
    for _ in range(trials):
        began = time.perf_counter()
        product(left, right).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2.0 * side**3 / min(times)


def _memory(device: jax.Device) -> float | None:
    stats = device.memory_stats() or {}
    return float(stats["bytes_limit"]) if "bytes_limit" in stats else None
