"""What the kernels tell the TPU compiler, read from programs that are lowered for a TPU on any machine."""

import functools
import re

import jax
import jax.numpy as jnp

from lumina_jax.chips import MIB
from lumina_jax.kernels.flash.call import flash_attention


def test_kernels_ask_for_tokens_in_hbm_and_for_whole_units_of_vector_memory_and_vmap_still_lowers():
    tokens, ids = jax.ShapeDtypeStruct((3, 1, 256, 2, 128), jnp.bfloat16), jax.ShapeDtypeStruct((3, 1, 256), jnp.int32)

    def gradients(ids, *inputs):
        attention = functools.partial(flash_attention, segment_ids=ids, scale=0.1)
        out, pull_back = jax.vjp(attention, *inputs)
        return pull_back(out)

    def lowered(function, *shapes):
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()

    alone = lowered(gradients, *(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in (ids, tokens, tokens, tokens)))
    in_hbm = [
        len(re.findall("operand_index", colors)) for colors in re.findall(r"input_memory_space_colors[^]]*", alone)
    ]
    assert in_hbm == [3, 5]  # queries, keys and values; with the output and its gradient
    asked = [int(size) for size in re.findall(r"scoped_memory_configs[^]]*size\\22: (\d+)", alone)]
    assert len(asked) == 2
    assert not any(size % MIB for size in asked)  # of other sizes the TPU compiler loses count
    assert "lumina_flash_backward" in lowered(jax.vmap(gradients), ids, tokens, tokens, tokens)
