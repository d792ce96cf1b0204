"""The expected course of programs, against times counted by hand.

The recorded instructions are of configs/t2i_5b_1024.py, compiled for v6e:16x16 by libtpu 0.0.42: what surrounds the
attention of a layer in the forward pass.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from lumina_jax.aot.breakdown import breakdown_json, breakdown_lines
from lumina_jax.aot.hlo import read_hlo
from lumina_jax.aot.timeline import CompileTarget, is_call_of, timeline
from lumina_jax.aot.traffic import hbm_bytes, kernel_bytes, work
from lumina_jax.chips import parse_topology
from lumina_jax.kernels.edges import KernelEdges, kernel_edges

RECORDED = (Path(__file__).parent / "recorded" / "around_attention_v6e.hlo").read_text()
V6E = parse_topology("v6e:16x16")
BANDWIDTH, CLOCK, PEAK, LINK = 1638e9, 1.75e9, 918e12, 100e9
RELAYOUT = 1059792 / CLOCK
WEIGHT = 3072 * 3072 * 2
HEADS = 4224 * 32 * 48 * 4
"""Bytes of half of the values of all heads, in float32."""
SLICES = HEADS + 4224 * 32 * 95 * 4
"""Every second value of a head, of which the last is the 95th from the first: written, and read with what lies between.
"""
KERNEL = 225888436224 / (96 / 256) / PEAK
GATHER = 15 * 12 * 3072 * 2 / (2 * LINK)
"""15 shards of others arrive, half of them over each of the two links of a ring."""


def machine(**changes):
    coordinates = list(itertools.product(range(16), range(16)))
    return CompileTarget(topology=V6E, coordinates=coordinates, attention_efficiency=96 / 256, **changes)


def seconds(text, **changes):
    """Seconds of each instruction that takes time."""
    return {entry.name: entry.seconds for entry in timeline(read_hlo(text), machine(**changes)).entries}


def test_what_a_slice_does_not_take_is_not_read():
    """Five slices of one weight together read it once; the two halves of a head's values write half of it each."""
    module = read_hlo(RECORDED)
    moved = {name: hbm_bytes(module, module.entry, one) for name, one in module.entry.instructions.items()}
    assert [moved[f"slice-start.{number}"] for number in range(322, 327)] == [4194304] * 4 + [2097152]
    assert sum(moved[f"slice-start.{number}"] for number in range(322, 327)) == WEIGHT
    assert moved["slice.616"] == moved["slice.617"] == SLICES
    assert moved["copy.802"] == moved["custom-call.151"] == moved["slice-done.322"] == 0
    kernel = moved["jvp_lumina_flash_forward_.11"]
    assert work(module).hbm_bytes == WEIGHT + 2 * SLICES + kernel


def test_a_slice_within_a_fusion_is_read_alone():
    module = read_hlo(
        """
%half (whole: f32[8,128]) -> f32[4,128] {
  %whole = f32[8,128]{1,0} parameter(0)
  %part = f32[4,128]{1,0} slice(%whole), slice={[4:8], [0:128]}
  ROOT %negative = f32[4,128]{1,0} negate(%part)
}

ENTRY %main (x: f32[8,128]) -> f32[4,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %y = f32[4,128]{1,0} fusion(%x), kind=kLoop, calls=%half
}
"""
    )
    assert work(module).hbm_bytes == 2 * 4 * 4 * 128


def test_relayouts_in_vmem_take_the_cycles_of_the_compiler_and_slices_without_cycles_their_bytes():
    found = seconds(RECORDED)
    assert found["copy.802"] == pytest.approx(RELAYOUT)
    assert found["slice.616"] == pytest.approx(SLICES / BANDWIDTH)
    assert found["all-gather.205"] == pytest.approx(GATHER)
    assert found["jvp_lumina_flash_forward_.11"] == pytest.approx(KERNEL)
    assert sum(found.values()) == pytest.approx(RELAYOUT + 2 * SLICES / BANDWIDTH + GATHER + KERNEL)


def test_transfers_overlap_with_what_lies_between_start_and_end_and_wait_for_each_other():
    """The relayout takes longer than the slices, which therefore cost nothing; a short one does not."""
    assert RELAYOUT > WEIGHT / BANDWIDTH
    assert not any("slice-done" in name for name in seconds(RECORDED))
    short = seconds(RECORDED.replace('"1059792"', '"1750"'))
    assert short["copy.802"] == pytest.approx(1e-6)
    assert short["slice-done.322"] == pytest.approx(4194304 / BANDWIDTH - 1e-6)
    assert short["slice-done.326"] == pytest.approx(2097152 / BANDWIDTH)
    assert sum(short[name] for name in short if "slice-done" in name) == pytest.approx(WEIGHT / BANDWIDTH - 1e-6)


def test_a_collective_with_a_start_and_an_end_overlaps_too():
    text = RECORDED.replace("%all-gather.205 =", "%begun =").replace(" all-gather(", " all-gather-start(")
    line = "  %all-gather.205 = bf16[1,192,3072]{2,0,1:S(1)} all-gather-done(%begun)\n"
    at_once = seconds(text.replace("  %jvp_lumina", line + "  %jvp_lumina"))
    assert at_once["all-gather.205"] == pytest.approx(GATHER)
    afterwards = seconds(text.replace("  ROOT", line + "  ROOT"))
    assert "all-gather.205" not in afterwards
    assert sum(at_once.values()) - sum(afterwards.values()) == pytest.approx(GATHER)


def test_a_collective_of_another_core_overlaps_as_well():
    """As SparseCores have it: a computation of a thread of its own, called with a start and an end."""
    line = next(line for line in RECORDED.splitlines() if line.startswith("  %all-gather.205 ="))
    operand = line.split("all-gather(")[1].split(")")[0]
    within = "  %p = bf16[1,12,3072]{2,0,1} parameter(0)\n" + line.replace(operand, "%p")
    called = f'%offloaded (p: bf16[1,12,3072]) -> f32[] {{\n{within}\n}}, execution_thread="sparsecore"\n\nENTRY '
    start = f"  %begun = ((f32[]), f32[]) call-start({operand}), to_apply=%offloaded"
    done = "  %all-gather.205 = bf16[1,192,3072]{2,0,1:S(1)} call-done(%begun)\n"
    text = RECORDED.replace(line, start).replace("ENTRY ", called)
    at_once = timeline(read_hlo(text.replace("  %jvp_lumina", done + "  %jvp_lumina")), machine())
    found = {one.name: (one.kind, one.seconds) for one in at_once.entries}
    assert found["all-gather.205"] == ("collectives", pytest.approx(GATHER))
    assert "all-gather.205" not in seconds(text.replace("  ROOT", done + "  ROOT"))


LOOP = """
%body (p: (s32[], bf16[1,4224,32,48,2])) -> (s32[], bf16[1,4224,32,48,2]) {
  %p = (s32[], bf16[1,4224,32,48,2]{1,3,2,4,0:S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[1,4224,32,48,2]{1,3,2,4,0:S(1)} get-tuple-element(%p), index=1
  %copy = bf16[1,4224,32,48,2]{1,4,3,2,0:S(1)} copy(%x), backend_config={"estimated_cycles":"1750"}
  %one = s32[] constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  ROOT %out = (s32[], bf16[1,4224,32,48,2]) tuple(%next, %copy)
}

%condition (q: (s32[], bf16[1,4224,32,48,2])) -> pred[] {
  %q = (s32[], bf16[1,4224,32,48,2]) parameter(0)
  ROOT %less = pred[]{:S(6)} constant(true)
}

ENTRY %main (x: (s32[], bf16[1,4224,32,48,2])) -> (s32[], bf16[1,4224,32,48,2]) {
  %t = (s32[], bf16[1,4224,32,48,2]) parameter(0)
  ROOT %w = (s32[], bf16[1,4224,32,48,2]) while(%t), condition=%condition, body=%body,
    backend_config={"known_trip_count":{"n":"7"}}
}
"""


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    (entry,) = (entry for entry in timeline(read_hlo(LOOP), machine()).entries if entry.name == "copy")
    assert (entry.times, entry.kind) == (7, "copies")
    assert entry.seconds == pytest.approx(7e-6)


def test_of_a_packed_row_a_kernel_counts_the_products_and_the_fetches_of_each_sample():
    """The arrays once: three of 26 MB of tokens and one result, two texts in VMEM, two of logarithms."""
    arrays = 4 * 4224 * 3072 * 2 + 2 * 32 * 4224 * 4
    streamed = RECORDED.replace('"bytes_accessed":"105381888"', f'"bytes_accessed":"{arrays + 8_000_000_000}"')
    module = read_hlo(streamed)
    kernel = module.entry.instructions["jvp_lumina_flash_forward_.11"]
    assert hbm_bytes(module, module.entry, kernel) == arrays + 8e9
    assert hbm_bytes(module, module.entry, kernel, samples=8) == arrays + 1e9
    assert work(module, samples=8).kernel_flops == 225888436224 / 8
    assert seconds(streamed, samples=8)[kernel.name] == pytest.approx((arrays + 1e9) / BANDWIDTH)
    assert kernel_bytes(3e9, 4e9, 8) == 3e9 / 8  # one window of the keys
    assert kernel_bytes(3.999e9, 4e9, 8) == 3.999e9  # all keys, and scalars
    moves_only = read_hlo(RECORDED.replace('"flops":"225888436224"', '"flops":"0"'))
    moving = moves_only.entry.instructions[kernel.name]
    assert hbm_bytes(moves_only, moves_only.entry, moving, samples=8) == arrays


@pytest.mark.parametrize("name", ["jvp_lumina_feed_forward_", "lumina_projections_backward_"])
def test_a_kernel_of_products_fills_the_matrix_units_whatever_the_heads_and_the_samples_of_a_row(name):
    text = RECORDED.replace("jvp_lumina_flash_forward_", name)
    done = work(read_hlo(text), samples=8)
    assert (done.token_product_flops, done.kernel_flops) == (225888436224, 0)
    assert done.hbm_bytes == work(read_hlo(text)).hbm_bytes
    assert seconds(text, samples=8)[f"{name}.11"] == pytest.approx(225888436224 / PEAK)


def test_a_kernel_waits_for_its_first_blocks_and_writes_its_last():
    """For all cores of a device at once: two on v5p, which share its bandwidth."""
    edges = {"lumina_flash_forward": KernelEdges(8e6, 2e6), "lumina_flash": KernelEdges(1e9, 1e9)}
    name = "jvp_lumina_flash_forward_.11"
    assert seconds(RECORDED, edges=edges)[name] == pytest.approx(KERNEL + 10e6 / BANDWIDTH)
    v5p = CompileTarget(topology=parse_topology("v5p:4x4x4"), coordinates=[(0, 0, 0)] * 16, edges=edges)
    two = {entry.name: entry.seconds for entry in timeline(read_hlo(RECORDED), v5p).entries}
    assert two[name] == pytest.approx(225888436224 / 459e12 + 2 * 10e6 / 2765e9)


@pytest.mark.parametrize(
    ("instruction", "is_call"),
    [
        ("lumina_flash_backward", True),
        ("lumina_flash_backward.10", True),
        ("jvp_lumina_flash_backward_.8", True),
        ("lumina_flash_backward_text.10", False),
        ("lumina_flash.10", False),
    ],
)
def test_a_kernel_is_found_by_its_name_however_differentiation_wraps_it(instruction, is_call):
    assert is_call_of(instruction, "lumina_flash_backward") == is_call


def test_edges_are_the_blocks_of_one_grid_step_through_scans_and_derivatives():
    def copied(x):
        block = pl.BlockSpec((8, 128), lambda i: (i, 0))
        last = pl.BlockSpec((None, 128), lambda i: (0, 0))
        whole = pl.BlockSpec(memory_space=pl.ANY)
        shapes = jax.ShapeDtypeStruct((32, 128), jnp.float32), jax.ShapeDtypeStruct((1, 128), jnp.bfloat16)
        specs = {"in_specs": [block, whole], "out_specs": (block, last), "out_shape": shapes}
        call = pl.pallas_call(lambda *_: None, grid=(4,), name="copied", **specs)
        return call(x, x)[0]

    def repeated(x):
        return jax.lax.scan(lambda x, _: (jax.jit(copied)(x), None), x, length=3)[0]

    program = jax.jit(repeated).trace(jax.ShapeDtypeStruct((32, 128), jnp.float32)).jaxpr
    assert kernel_edges(program.jaxpr) == {"copied": KernelEdges(8 * 128 * 4.0, 8 * 128 * 4.0 + 128 * 2)}


def test_a_breakdown_lists_the_dearest_instructions_with_the_lines_they_come_from():
    found = timeline(read_hlo(RECORDED), machine())
    lines = list(breakdown_lines(found, CLOCK))
    first, second = lines[2], lines[3]
    assert "jvp_lumina_flash_forward_.11" in first
    assert first.endswith("lumina_jax/kernels/flash/call.py:150")
    assert "0.226" in first  # TFLOP
    assert "    1059792" in second
    assert second.endswith("lumina_jax/models/rope.py:69")
    dearest, relayout, slices, *_ = breakdown_json(found, CLOCK)
    assert (dearest["kind"], dearest["flops"]) == ("kernels", 225888436224)
    assert (relayout["cycles"], relayout["hbm_bytes"]) == (pytest.approx(1059792), 0)
    assert slices["hbm_bytes"] == SLICES
    rope = found.by_source()[0]
    assert (rope.source, rope.times) == ("lumina_jax/models/rope.py:69", 3)
    assert rope.seconds == pytest.approx(RELAYOUT + 2 * SLICES / BANDWIDTH)
    assert sum(found.by_kind().values()) == pytest.approx(found.seconds)
