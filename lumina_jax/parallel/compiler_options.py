"""Options of the TPU compiler for programs that train and draw, the same on attached and on absent TPUs.

In: jax's name of the kind of the devices. Out: `compiler_options` of `jax.jit`; None where they are no TPUs.

* `xla_tpu_scoped_vmem_limit_kib`: the vector memory that one fusion may take. libtpu allows 16 MiB, with which a
  product of activations and weights reads its operands in small blocks, and reaches 50 to 80 % of the matrix units'
  peak where other arithmetic is fused to it. Half of a core's memory is allowed to programs that draw; those that
  train may have less, so that arrays around our attention kernels, whose limit is their own, have room.
* asynchronous collectives: libtpu waits for each gather of weights unless it may run beside a matrix product.
* SparseCores of a v6e: in training they gather weights and scatter gradients, beside everything else. With queuing, a
  kernel covers several gathers; without it, each product or kernel covers one.

A flag that the environment variable LIBTPU_INIT_ARGS names is left to it. LUMINA_TPU_OPTIONS replaces all of them by
other words, NAME=VALUE NAME=VALUE; "none" leaves every one to libtpu.
"""

import os
from collections.abc import Mapping
from typing import Any

from lumina_jax.chips import MIB, Chip, chip_of_kind

VARIABLE = "LUMINA_TPU_OPTIONS"
FUSION_VMEM = {"v5e": 32 * MIB, "v5p": 32 * MIB, "v6e": 52 * MIB, "tpu7x": 32 * MIB}
"""The vector memory that a fusion may take in training; other chips keep libtpu's limit."""
ASYNCHRONOUS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}

SPARSE_CORES = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_enable_all_gather_offload_tracing": "true",
    "xla_tpu_enable_reduce_scatter_offload_tracing": "true",
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_tpu_enable_sparse_core_offload_queuing_in_lhs": "true",
}
"""What differs where SparseCores gather and scatter."""
WITH_SPARSE_CORES = ("v6e",)
"""Chips that train so: others were not compiled with these options."""


def compiler_options(
    device_kind: str, environment: Mapping[str, str] = os.environ, *, trains: bool
) -> dict[str, Any] | None:
    """The options for a program on devices of this kind; None where they are no TPUs of `chips.py`, or all options are
    left to libtpu.

    Raises:
      ValueError: a word of LUMINA_TPU_OPTIONS is no NAME=VALUE.
    """
    chip = chip_of_kind(device_kind)
    if chip is None:
        return None
    given, named = environment.get(VARIABLE), environment.get("LIBTPU_INIT_ARGS", "")
    options = usual_options(chip, trains=trains) if given is None else _parsed(given)
    names = {word.lstrip("-").partition("=")[0] for word in named.split()}
    return {name: value for name, value in options.items() if name not in names} or None


def usual_options(chip: Chip, *, trains: bool) -> dict[str, Any]:
    """The options for a chip, without those of the environment."""
    collectives = ASYNCHRONOUS | SPARSE_CORES if trains and chip.name in WITH_SPARSE_CORES else ASYNCHRONOUS
    if chip.name not in FUSION_VMEM:
        return collectives
    room = FUSION_VMEM[chip.name] if trains else chip.vmem // 2
    return {"xla_tpu_scoped_vmem_limit_kib": str(room // 1024)} | collectives


def _parsed(words: str) -> dict[str, Any]:
    if words.strip() == "none":
        return {}
    for word in words.split():
        name, equals, value = word.lstrip("-").partition("=")
        if not (name and equals and value):
            raise ValueError(
                f"{VARIABLE} must be NAME=VALUE NAME=VALUE, or none, but has {word!r}; write --xla_name=value without "
                "its dashes"
            )
    return dict(word.lstrip("-").split("=", 1) for word in words.split())
