"""What recorded and written-out programs do, against counts by hand.

The recorded step is compiled for v5e:4x4 and v5p:2x2x2 by libtpu 0.0.42: 5 layers of two matrices 1024 x 2048, kept in
float32 shares of every device, gathered in bfloat16 along one axis of the torus after another for the forward and for
the backward pass, 256 rows of 1024 a device, each layer rematerialised, gradients scattered.
"""

from pathlib import Path

import pytest

from lumina_jax.aot.hlo import read_hlo
from lumina_jax.aot.memory import stacked
from lumina_jax.aot.traffic import collectives, hbm_bytes, work

RECORDED = Path(__file__).parent / "recorded"
DEVICES = {"gathered_v5e_4x4": 16, "gathered_v5p_2x2x2": 8}
WEIGHTS = 5 * 2 * 1024 * 2048


def sent(module, devices):
    """Bytes that a device sends in a step, by kind."""
    totals = {}
    for one in collectives(module):
        totals[one.kind] = totals.get(one.kind, 0) + one.times * one.sent_bytes(devices)
    return totals


@pytest.mark.parametrize("name", DEVICES)
def test_a_recorded_step_gathers_weights_twice_and_scatters_gradients_once(name):
    devices = DEVICES[name]
    found = sent(read_hlo((RECORDED / f"{name}.hlo").read_text()), devices)
    share = (devices - 1) / devices
    assert found["all-gather"] == 2 * 2 * WEIGHTS * share
    assert found["reduce-scatter"] == 2 * WEIGHTS * share
    assert found["all-reduce"] == 2 * 4 * share  # the loss


@pytest.mark.parametrize("name", DEVICES)
def test_a_recorded_step_does_seven_products_a_layer(name):
    """Two forward, the first of them again, and for each the gradient of both factors."""
    done = work(read_hlo((RECORDED / f"{name}.hlo").read_text()))
    assert done.product_flops == 5 * 7 * 2 * 256 * 1024 * 2048
    assert (done.batched_flops, done.kernel_flops, done.unknown_loops) == (0, 0, 0)


def test_what_layers_keep_and_what_their_gradients_take_is_found():
    """On v5p; the arrays of v5e all fit into VMEM."""
    module = read_hlo((RECORDED / "gathered_v5p_2x2x2.hlo").read_text())
    kept, gradients = stacked(module, layers=5)
    assert kept == 5 * 256 * 1024 * 2
    assert gradients == 4 * WEIGHTS / 8
    assert stacked(module, layers=7) == (0, 0)


HIDDEN = """
HloModule hidden

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[2048,4096]) -> bf16[520,4096] {
  %input = bf16[2048,4096]{1,0} parameter(0)
  %nothing = bf16[] constant(0)
  %pad = bf16[2080,4096]{1,0} pad(%input, %nothing), padding=0_32x0_0
  %all-reduce.1 = bf16[2080,4096]{1,0} all-reduce(%pad), replica_groups={{0,4,8,12},{1,5,9,13}}, to_apply=%add
  %offset = u32[] constant(0)
  ROOT %own = bf16[520,4096]{1,0} dynamic-slice(%all-reduce.1, %offset, %offset), dynamic_slice_sizes={520,4096}
}

%start (shard: bf16[8,128]) -> (bf16[8,128], bf16[32,128]) {
  %shard = bf16[8,128]{1,0} parameter(0)
  %gather.1 = bf16[32,128]{1,0} all-gather(%shard), channel_id=5, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %started = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) custom-call(%gather.1),
    custom_call_target="AsyncCollectiveStart"
}

%overlapped (shard: bf16[8,128], l: bf16[16,64], r: bf16[64,256]) -> (bf16[16,256], bf16[32,128]) {
  %shard.2 = bf16[8,128]{1,0} parameter(0)
  %l = bf16[16,64]{1,0} parameter(1)
  %r = bf16[64,256]{1,0} parameter(2)
  %gather.2 = bf16[32,128]{1,0} all-gather(%shard.2), channel_id=5, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %product = bf16[16,256]{1,0} convolution(%l, %r), dim_labels=bf_io->bf
  ROOT %both = (bf16[16,256]{1,0}, bf16[32,128]{1,0}) tuple(%product, %gather.2)
}

%slice_one (stack: f32[10,64], offset: s32[]) -> f32[1,64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %offset = s32[]{:S(6)} parameter(1)
  %first = s32[] constant(0)
  ROOT %slice = f32[1,64]{1,0} dynamic-slice(%stack, %offset, %first), dynamic_slice_sizes={1,64}
}

%write_one (stack.1: f32[10,64], new: f32[1,64], offset.1: s32[]) -> f32[10,64] {
  %stack.1 = f32[10,64]{1,0} parameter(0)
  %new = f32[1,64]{1,0} parameter(1)
  %offset.1 = s32[]{:S(6)} parameter(2)
  %first.1 = s32[] constant(0)
  ROOT %written = f32[10,64]{1,0} dynamic-update-slice(%stack.1, %new, %offset.1, %first.1)
}

ENTRY %main (g: bf16[2048,4096], s: bf16[8,128], l: bf16[16,64]) -> f32[10,64] {
  %g = bf16[2048,4096]{1,0} parameter(0)
  %s = bf16[8,128]{1,0} parameter(1)
  %l.1 = bf16[16,64]{1,0} parameter(2)
  %r.1 = bf16[64,256]{1,0} parameter(3)
  %k = f32[10,64]{1,0} parameter(4)
  %i = s32[]{:S(6)} parameter(5)
  %scattered = bf16[520,4096]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %begun = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) fusion(%s), kind=kCustom, calls=%start
  %busy = (bf16[16,256]{1,0}, bf16[32,128]{1,0}) fusion(%s, %l.1, %r.1), kind=kOutput, calls=%overlapped
  %sent = (bf16[8,128]{1,0}, bf16[8,128]{1,0}) collective-permute-start(%s),
    source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %received = bf16[8,128]{1,0} collective-permute-done(%sent)
  %sliced = f32[1,64]{1,0} fusion(%k, %i), kind=kLoop, calls=%slice_one
  %batches = bf16[4,16,32]{2,1,0} parameter(6)
  %others = bf16[4,8,32]{2,1,0} parameter(7)
  %logits = f32[4,16,8]{2,1,0} convolution(%batches, %others),
    window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf
  %kernel = f32[64]{0:S(1)} custom-call(%k), custom_call_target="tpu_custom_call",
    backend_config={"custom_call_config":{"cost_estimate":{"flops":"1234","transcendentals":"5","bytes_accessed":"777"}}}
  %mute = f32[64]{0} custom-call(%k), custom_call_target="tpu_custom_call", backend_config={}
  ROOT %kept = f32[10,64]{1,0} fusion(%k, %sliced, %i), kind=kLoop, calls=%write_one
}
"""


def test_collectives_inside_fusions_count_once_and_for_what_they_are():
    module = read_hlo(HIDDEN)
    found = {one.kind: one for one in collectives(module)}
    assert len(collectives(module)) == 3
    scatter, gather, permute = found["reduce-scatter"], found["all-gather"], found["collective-permute"]
    assert (scatter.operand_bytes, scatter.groups[0], scatter.dtype) == (2 * 2048 * 4096, (0, 4, 8, 12), "bf16")
    assert scatter.sent_bytes(16) == 2 * 2048 * 4096 * 3 / 4
    assert gather.groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert gather.sent_bytes(8) == 3 * 2 * 8 * 128
    assert permute.groups == ((0, 1), (1, 2), (2, 3), (3, 0))
    assert permute.sent_bytes(4) == 2 * 8 * 128


def test_products_are_told_from_batched_ones_and_from_kernels():
    done = work(read_hlo(HIDDEN))
    assert done.product_flops == 2 * 16 * 64 * 256
    assert done.batched_flops == 4 * 2 * 16 * 32 * 8
    assert (done.kernel_flops, done.silent_kernels) == (1234, 1)
    assert work(read_hlo(HIDDEN), samples=2).kernel_flops == 617


def test_memory_that_is_sliced_or_updated_in_place_counts_as_the_slice():
    module = read_hlo(HIDDEN)
    moved = {name: hbm_bytes(module, module.entry, one) for name, one in module.entry.instructions.items()}
    assert moved["sliced"] == 2 * 4 * 64
    assert moved["kept"] == 2 * 4 * 64
    assert moved["kernel"] == 777
    assert moved["mute"] == 4 * 10 * 64 + 4 * 64
    assert moved["k"] == moved["received"] == 0
    assert moved["busy"] == 2 * (16 * 64 + 64 * 256 + 16 * 256)
