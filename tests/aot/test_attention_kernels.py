"""The attention kernels compiled ahead of time for TPUs, between two projections, as a model calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lumina_jax.chips import parse_topology

pytestmark = pytest.mark.aot
ROOT = Path(__file__).parents[2]
TOPOLOGIES = "v5e:2x2", "v5p:2x2x1", "v6e:2x2"
PROGRAM = r"""
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.attention import attend

topology, width, heads, key_heads, tokens, gradients = json.loads(sys.argv[1])
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = Mesh(np.array(devices).reshape(-1), ("rows",))

def layer(x, wq, wk, wv, wo, ids, words, gate, word_ids):
    def split(y):
        return y.reshape(*y.shape[:2], -1, width)
    q, k, v, tk, tv = split(x @ wq), split(x @ wk), split(x @ wv), split(words @ wk), split(words @ wv)
    text = GatedText(tk, tv, gate, word_ids)
    out = attend(q, k, v, segment_ids=ids, scale=width**-0.5, text=text)
    return out.reshape(*x.shape[:2], -1) @ wo

def loss(*inputs):
    return jnp.sum(layer(*inputs).astype(jnp.float32) ** 2)[None]

def run(*inputs):
    if not gradients:
        return layer(*inputs)
    found = jax.grad(lambda *x: loss(*x, *inputs[5:])[0], argnums=(0, 1, 2, 3, 4))(*inputs[:5])
    return found[0], *(jax.lax.psum(x, "rows") for x in found[1:])

def array(*shape, dtype=jnp.bfloat16, spec=P()):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

rows, b, m = P("rows"), len(devices), 512
inputs = [array(b, tokens, m, spec=rows), array(m, heads * width), array(m, key_heads * width),
          array(m, key_heads * width), array(heads * width, m), array(b, tokens, dtype=jnp.int32, spec=rows),
          array(b, 128, m, spec=rows), array(heads, dtype=jnp.float32), array(b, 128, dtype=jnp.int32, spec=rows)]
out = (rows, P(), P(), P(), P()) if gradients else rows
divided = jax.shard_map(run, mesh=mesh, in_specs=tuple(x.sharding.spec for x in inputs), out_specs=out, check_vma=False)
text = jax.jit(divided).trace(*inputs).lower(lowering_platforms=("tpu",)).compile().as_text()
least = tokens * key_heads * width
moved = [
    line.strip()[:160]
    for line in text.splitlines()
    if (found := re.search(r"= \w+\[([\d,]+)\]\S* (copy|transpose|pad|slice)\(", line))
    and np.prod([int(n) for n in found[1].split(",")]) >= least
]
print(json.dumps({"kernels": sorted(set(re.findall(r"lumina_flash_(?:forward|backward)", text))), "moved": moved}))
"""


def compiled(topology, *arguments):
    environment = os.environ | parse_topology(topology).environment
    command = [sys.executable, "-c", PROGRAM, json.dumps([topology, *arguments])]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    ("width", "heads", "key_heads", "tokens"),
    [(128, 8, 8, 1152), (96, 8, 4, 1152), (48, 8, 8, 1152), (64, 4, 4, 1152), (72, 16, 4, 1100), (64, 8, 1, 1152)],
)
def test_between_projections_nothing_is_padded_copied_or_transposed(topology, width, heads, key_heads, tokens):
    found = compiled(topology, width, heads, key_heads, tokens, False)
    assert found == {"kernels": ["lumina_flash_forward"], "moved": []}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(("width", "tokens"), [(128, 4224), (96, 4224), (72, 1152), (72, 16384)])
def test_gradients_compile_within_every_chip_s_vector_memory(topology, width, tokens):
    found = compiled(topology, width, 16, 16, tokens, True)
    assert found["kernels"] == ["lumina_flash_backward", "lumina_flash_forward"]
