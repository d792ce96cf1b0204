"""The reader of compiled schedules, on a recorded kernel whose counts follow from its source and on written ones."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lumina_jax.chips import CHIPS
from lumina_jax.kernel_bench.estimate import estimate
from lumina_jax.kernel_bench.scalar_unit import FROM_VECTOR, follow
from lumina_jax.kernel_bench.scalars import Call, calls_of, issued_by, kernel_calls, scalars_of
from lumina_jax.kernel_bench.schedule import kernel_name, read_schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "schedule"
STEPS, TRIPS, READ_TRIPS = 2 * 3, 5, 4
"""Of tools/make_schedule_golden.py: its grid, its loop, and what its other loop shall read from memory."""


@pytest.fixture(scope="module")
def recorded():
    names = ("final_bundles", "final_hlo-static-per-bundle-utilization", "post-delay-converter")
    return read_schedule(*((GOLDEN / f"{name}.txt").read_text() for name in names))


def times(schedule, text, trips=READ_TRIPS):
    """How often the bundles that hold `text` are issued."""
    issued = follow(schedule, {0: np.array([trips], np.int32)})
    return [issued[number] for number, bundle in enumerate(schedule.bundles) if text in bundle.text]


def test_a_recorded_kernel_has_the_grid_of_its_source_and_a_bundle_for_each_address(recorded):
    text = (GOLDEN / "final_bundles.txt").read_text()
    last = [line.split()[0] for line in text.splitlines() if line.lstrip().startswith("0x")][-1]
    assert (recorded.name, recorded.grid) == ("counted.1", (2, 3))
    assert len(recorded.bundles) == int(last, 16) + 1 == len(recorded.slot_use)
    assert [recorded.bundles[number].depth for number in (0, 0x0F, 0x5F, 0x80)] == [0, 1, 2, 2]


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_products_are_issued_once_for_each_trip_of_each_step(recorded, trips):
    assert times(recorded, "vmatmul", trips) == [STEPS * TRIPS, STEPS * trips]


def test_setting_up_and_writing_back_happen_once_for_each_turn_of_the_last_axis(recorded):
    assert times(recorded, "vst [vmem:[#allocation2] sm:$0xff] %v1290_v0") == [2]
    assert times(recorded, "vst [vmem:[%s244_s8]") == [2]


def test_transfers_are_started_in_every_step_and_the_pipeline_fills_and_drains(recorded):
    assert times(recorded, "dma.hbm_to_vmem") == [STEPS]
    assert times(recorded, "sphi %s1347_s26") == [STEPS + 2]


def test_a_product_of_sixteen_rows_takes_a_unit_that_takes_two_rows_a_cycle_eight_cycles(recorded):
    found = estimate(recorded, CHIPS["v6e"], follow(recorded, {0: np.array([READ_TRIPS], np.int32)}))
    assert found.product_cycles * CHIPS["v6e"].matrix_units == STEPS * (TRIPS + READ_TRIPS) * 8
    assert (found.main_bundles, found.main_runs) == (27, STEPS * TRIPS)  # 0x5f to 0x79
    assert found.slot_use["MXU"] == pytest.approx(8 / 27 / 2)
    assert found.cycles == found.issue_cycles  # bundles, not products, are what it waits for


def test_memory_is_two_windows_of_each_operand_and_the_accumulator(recorded):
    x, w, out, total = 16 * 128 * 2, 8 * 128 * 128 * 2, 16 * 128 * 2, 16 * 128 * 4
    assert recorded.vmem_bytes == 2 * (x + w + out) + total


def test_what_steers_a_kernel_must_be_given(recorded):
    assert list(recorded.scalars) == [0]
    with pytest.raises(ValueError, match=r"scalar operands \[0\], which are not given"):
        follow(recorded, {})


WRITTEN = """
     0   :  { %s9_s0 = smov 2 } /* entry bundle: %by_hand.1 = custom-call(%x) */
   0x1   :  { %s1_s1 = smov %s9_s0  ;;  %s2_s3 = smov 0 }
   0x2 LB: > { %s3_s3 = sphi %s2_s3, %s4_s3 /* a comment
of two lines { } */ } /* Start region 7 */
   0x3   : > { %5 = vmatmul.mubr.bf16.gmra.mxu0 %v1  ;;  %6 = vmatmul.mubr.bf16.gmra.mxu1 %v1 }
   0x4   : > { %7 = vmatmul.mubr.bf16.gmra.mxu0 %v2  ;;  %s4_s3 = sadd.s32 %s1_s1, %s3_s3 }
   0x5   : > { %p8_p0 = scmp.ge.s32.totalorder %s4_s3, 10  ;;  %99 = vst [vmem:[%s1] sm:$0xff] %v3 }
   0x6   : > { %11 = sbr.rel (!%p8_p0) target = $region7 }
   0x7   : > { %12 = vdelay 3 }
   0x8   :  {}
   0x9   :  {}
   0xa   :  {} /* End region 7 */
   0xb   :  { %13 = vst [vmem:[%s1] sm:$0xff] %v3 }
"""


def slots(bundles):
    return "== CAPACTIY:\nMXU, VSTORE, VSTORE:SPILL\n2 2 2\n== UTILIZATION:\n" + "\n".join(["0 0 0"] * bundles)


SLOTS = slots(3) + "\n2 0 0\n1 0 0\n0 1 1\n" + "\n".join(["0 0 0"] * 5 + ["0 1 0"])


def test_a_loop_of_three_products_waits_for_the_busier_unit():
    schedule = read_schedule(WRITTEN, SLOTS, "")
    issued = follow(schedule, {})
    np.testing.assert_array_equal(issued, [1, 1, *[5] * 9, 1])  # 0, 2, 4, 6, 8
    slow, fast = (estimate(schedule, CHIPS[name], issued) for name in ("v5e", "v6e"))
    assert slow.cycles == 2 + 5 * max(9 + 2, 2 * 16) + 1
    assert fast.cycles == 2 + 5 * max(9 + 2, 2 * 8) + 1
    assert slow.issue_cycles == 2 + 5 * (9 + 2) + 1
    assert slow.product_cycles == 5 * 3 * 16 / 4
    assert (slow.spills, slow.slot_use["MXU"]) == (1, 3 / 9 / 2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("no bundles", SLOTS, ""), "holds no bundles"),
        ((WRITTEN, "nothing", ""), "== UTILIZATION:"),
        ((WRITTEN, SLOTS.rsplit("\n", 3)[0], ""), "two kernels"),
        (
            (
                WRITTEN.replace("%13 = vst", "%14 = sbr.rel target = $region9 ;; %13 = vst").replace(
                    "region7", "region8"
                ),
                SLOTS,
                "",
            ),
            "start nowhere",
        ),
    ],
)
def test_texts_of_another_format_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        read_schedule(*texts)


def test_a_kernel_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr("lumina_jax.kernel_bench.scalar_unit.MOST_PIECES", 1000)
    with pytest.raises(ValueError, match="did not end"):
        follow(read_schedule(WRITTEN.replace("smov 2", "smov 0"), SLOTS, ""), {})


def test_a_branch_to_a_region_without_bundles_ends_the_program():
    schedule = read_schedule(WRITTEN.replace("(!%p8_p0) target = $region7", "target = $region8"), SLOTS, "")
    np.testing.assert_array_equal(follow(schedule, {}), [*[1] * 11, 0])


def test_a_block_that_begins_in_the_delay_of_a_branch_ends_it():
    lines = ["%1 = sbr.rel target = $region5", "", "", "%2 = sbr.rel target = $region4", "", "", "", "", "%91 = vnop"]
    text = "\n".join(f"  {number:#x}   :  {{ {line} }}" for number, line in enumerate(lines))
    text = text.replace("0x0   :", "0   :").replace(" }", " } /* entry bundle: %by_hand.1 = custom-call(%x) */", 1)
    text += "\n  0x9   :  { %92 = vnop } /* Start region 4 */ \n  0xa   :  { %93 = vnop } /* Start region 5 */"
    with pytest.raises(ValueError, match="bundle 3 branches in the delay of another"):
        follow(read_schedule(text, slots(11), ""), {})
    issued = follow(read_schedule(text.replace("0x2   :", "0x2 PF:"), slots(11), ""), {})
    np.testing.assert_array_equal(issued, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1])


def test_only_custom_calls_are_kernels():
    assert kernel_name(WRITTEN) == "by_hand.1"
    assert kernel_name(WRITTEN.replace("custom-call(", "fusion(")) is None


def branch_after(*bundles):
    """Whether a program of these bundles ends with p0 set: then its last bundle but one is skipped."""
    lines = [*bundles, "%90 = sbr.rel (%p1_p0) target = $region5", "", "", "", "", "%91 = vnop"]
    text = "\n".join(f"  {number:#x}   :  {{ {line} }}" for number, line in enumerate(lines))
    text = text.replace("0x0   :", "0   :").replace(" }", " } /* entry bundle: %by_hand.1 = custom-call(%x) */", 1)
    text += f"\n  {len(lines):#x}   :  {{ %92 = vnop }} /* Start region 5 */"
    return follow(read_schedule(text, slots(len(lines) + 1), ""), {})[-2] == 0


EQUAL = "%p1_p0 = scmp.eq.s32.totalorder %s1_s1, %s2_s2"


@pytest.mark.parametrize(
    ("bundles", "expected"),
    [
        # Reads come before writes: two registers change places in one bundle.
        (["%s1_s1 = smov 1 ;; %s2_s2 = smov 2", "%s3_s1 = smov %s2_s2 ;; %s4_s2 = smov %s1_s1",
          "%p1_p0 = scmp.gt.s32.totalorder %s1_s1, %s2_s2"], True),
        # 4294967295 is -1, and comparisons without sign know it.
        (["%s1_s1 = sadd.s32 4294967295, 0", "%p1_p0 = scmp.lt.s32.totalorder %s1_s1, 0"], True),
        (["%s1_s1 = sadd.s32 4294967295, 0", "%p1_p0 = scmp.lt.u32.totalorder %s1_s1, 1"], False),
        (["%s1_s1 = smul.u32 65536, 65537 ;; %s2_s2 = smov 65536", EQUAL], True),
        (["%s1_s1 = sshra.s32 4294967288, 2 ;; %s2_s2 = smov 4294967294", EQUAL], True),
        (["%s1_s1 = sshrl.u32 4294967288, 28 ;; %s2_s2 = smov 15", EQUAL], True),
        (["%s1_s1 = smin.u32 4294967040, 256 ;; %s2_s2 = smov 256", EQUAL], True),
        (["%s1_s1 = smulhi.u32 4294967295, 16 ;; %s2_s2 = smov 15", EQUAL], True),
        # Instructions with a predicate are not executed without it; smov with two values takes one of them.
        (["%p1_p0 = scmp.eq.s32.totalorder 1, 2", "%p1_p0 = por (%p1_p0), %p1_p0, 1"], False),
        (["%s1_s1 = smov 7 ;; %s2_s2 = smov 8", "%p1_p3 = scmp.eq.s32.totalorder %s1_s1, 7",
          "%s1_s1 = smov (%p1_p3, %s1_s1), %s2_s2", EQUAL], True),
        (["%s1_s1 = smov 7 ;; %s2_s2 = smov 8", "%p1_p3 = scmp.eq.s32.totalorder %s1_s1, 7",
          "%s1_s1 = smov (!%p1_p3, %s1_s1), %s2_s2", EQUAL], False),
        (["%p1_p3 = scmp.eq.s32.totalorder 1, 1", "%s1_s1 = scalar_select /*predicate=*/%p1_p3, /*on_true=*/5, "
          "/*on_false=*/6 ;; %s2_s2 = smov 5", EQUAL], True),
        # Memory: spilled and loaded, by a computed address too; words of different allocations are apart.
        (["%s1_s1 = smov 5 ;; %s2_s2 = smov 5", "%8 = sst [smem:[#allocation3_spill]] %s1_s1",
          "%8 = sst [smem:[#allocation3]] %s9_s9", "%s1_s1 = sld [smem:[#allocation3_spill]]", EQUAL], True),
        (["%s1_s1 = smov 5 ;; %s2_s2 = smov 5", "%8 = sst [smem:[#allocation3 + $0x2]] %s1_s1",
          "%s7_s7 = scalar_lea.smem [#allocation3], 1", "%s1_s1 = sld [smem:[%s7_s7 + $0x1]]", EQUAL], True),
        # What vector units report is 1, whole or real.
        (["%s1_s1 = vtos.u32 %v1", "%p1_p0 = scmp.gt.f32.totalorder %s1_s1, 0.5"], True),
        (["%p1_p4 = scmp.eq.s32.totalorder 1, 1", "%p1_p0 = pneg %p1_p4"], False),
        (["%p1_p4 = scmp.eq.s32.totalorder 1, 1", "%p1_p0 = pnand %p1_p4, %p1_p9"], True),
    ],
)  # fmt: skip
def test_the_scalar_unit_computes_what_its_instructions_say(bundles, expected):
    assert branch_after(*bundles) == expected


def test_a_remainder_is_refused_rather_than_taken_for_one():
    with pytest.raises(ValueError, match=r"sdivrem.*without a remainder"):
        branch_after("%182 = sdivrem.u32 %s1_s1, 1152 /* kRem */ ;; %s1_s1 = smov 1")


def test_one_as_a_real_number_is_what_vectors_report():
    assert np.array(FROM_VECTOR, np.int32).view(np.float32) == 1


def call_of(trips, x):
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(1,),
        in_specs=[pl.BlockSpec((8, 128), lambda i, trips: (0, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i, trips: (0, 0)),
    )

    def kernel(trips, x, out):
        out[...] = x[...]

    return pl.pallas_call(kernel, grid_spec=grid, out_shape=x, name="counted")(trips * 2, x)


def test_scalars_of_a_call_are_computed_without_running_its_kernel():
    @jax.jit
    def program(trips, x):
        return call_of(trips + 1, call_of(trips, x) + 1)

    calls = kernel_calls(program, (jnp.array([3]), jnp.zeros((8, 128))))
    assert [(call.name, call.scalars[0].tolist()) for call in calls] == [("counted", [6]), ("counted", [8])]


def test_a_schedule_finds_the_call_of_its_name(recorded):
    calls = [Call("other", (np.zeros(1, np.int32),)), Call("counted", ()), Call("counted", (np.array([7], np.int32),))]
    assert scalars_of(recorded, calls)[0].tolist() == [7]
    assert scalars_of(recorded, calls[:2]) == {}


def test_a_schedule_that_a_loop_calls_counts_all_its_calls_and_shares_them_with_others_of_its_kernel(recorded):
    """The recorded kernel issues its loop as often as its scalar says: for three windows 5 + 7 + 5 times."""
    calls = [Call("counted", (np.array([trips], np.int32),)) for trips in (5, 7, 5)]
    once = [follow(recorded, {0: np.array([trips], np.int32)}) for trips in (5, 7)]
    (all_windows,) = issued_by([recorded], calls, repeated=True)
    np.testing.assert_array_equal(all_windows, 2 * once[0] + once[1])
    np.testing.assert_array_equal(issued_by([recorded], calls, repeated=False)[0], once[0])
    other = replace(recorded, name="jvp_counted__.2")
    shared = issued_by([recorded, other], calls, repeated=True)
    np.testing.assert_allclose(shared[0] + shared[1], all_windows)


def test_a_schedule_does_not_take_calls_of_a_kernel_whose_name_goes_on(recorded):
    calls = [Call("counted", (np.array([5], np.int32),)), Call("counted_text", (np.array([7], np.int32),))]
    assert [one[0].tolist() for one in calls_of(replace(recorded, name="jvp_counted_text_.1"), calls)] == [[7]]
    assert [one[0].tolist() for one in calls_of(replace(recorded, name="jvp_counted_.1"), calls)] == [[5]]


def test_a_schedule_finds_the_call_that_was_differentiated(recorded):
    calls = [Call("counted", (np.array([7], np.int32),))]
    assert scalars_of(replace(recorded, name="transpose_jvp_counted__.1"), calls)[0].tolist() == [7]
    assert scalars_of(replace(recorded, name="jvp_other_.1"), calls) == {}
