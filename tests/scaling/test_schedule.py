"""The reader of compiled schedules, on a recorded kernel whose counts follow from its source and on a written one."""

from pathlib import Path

import numpy as np
import pytest

from lumina_jax.scaling.cores import CORES
from lumina_jax.scaling.estimate import Course, estimate, times_issued
from lumina_jax.scaling.schedule import kernel_name, read_schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "schedule"
STEPS, TRIPS, READ_TRIPS = 2 * 3, 5, 4.0
"""Of tools/make_schedule_golden.py: its grid, its loop, and what its other loop is supposed to read from memory."""


@pytest.fixture(scope="module")
def recorded():
    names = ("final_bundles", "final_hlo-static-per-bundle-utilization", "post-delay-converter")
    return read_schedule(*((GOLDEN / f"{name}.txt").read_text() for name in names))


def products(schedule):
    return [number for number, bundle in enumerate(schedule.bundles) if "vmatmul" in bundle.text]


def test_a_recorded_kernel_has_the_loops_and_the_grid_of_its_source(recorded):
    assert (recorded.name, recorded.grid) == ("counted.1", (2, 3))
    grid, fixed, read = recorded.loops
    assert STEPS <= grid.trips <= STEPS + 2  # the pipeline fills and drains
    assert (fixed.trips, read.trips) == (TRIPS, None)
    assert [recorded.bundles[loop.first].depth for loop in recorded.loops] == [1, 2, 2]


def test_a_recorded_kernel_has_a_bundle_for_each_address_of_its_file(recorded):
    text = (GOLDEN / "final_bundles.txt").read_text()
    last = [line.split()[0] for line in text.splitlines() if line.lstrip().startswith("0x")][-1]
    assert len(recorded.bundles) == int(last, 16) + 1 == len(recorded.slot_use)


def test_products_are_issued_once_for_each_trip_of_each_step(recorded):
    issued, unknown = times_issued(recorded, Course((READ_TRIPS,)))
    assert unknown == 0
    assert [issued[number] for number in products(recorded)] == pytest.approx([STEPS * TRIPS, STEPS * READ_TRIPS])


def test_loops_that_nobody_counts_are_reported(recorded):
    issued, unknown = times_issued(recorded, Course())
    assert unknown == 1
    assert issued[products(recorded)[1]] == pytest.approx(STEPS)


def test_a_share_of_steps_scales_what_a_branch_skips(recorded):
    issued, _ = times_issued(recorded, Course((READ_TRIPS,), (0.25,)))
    assert [issued[number] for number in products(recorded)] == pytest.approx([STEPS * TRIPS, STEPS * READ_TRIPS / 4])


def test_setting_up_and_writing_back_happen_once_for_each_turn_of_the_last_axis(recorded):
    issued, _ = times_issued(recorded, Course())
    set_up = [n for n, b in enumerate(recorded.bundles) if "vst [vmem:[#allocation2] sm:$0xff] %v1290_v0" in b.text]
    write_back = [n for n, b in enumerate(recorded.bundles) if "vst [vmem:[%s244_s8]" in b.text]
    assert [issued[number] for number in (*set_up, *write_back)] == pytest.approx([2, 2])


def test_a_product_of_sixteen_rows_takes_a_unit_that_takes_two_rows_a_cycle_eight_cycles(recorded):
    found = estimate(recorded, CORES["v6e"], Course((READ_TRIPS,)))
    assert found.product_cycles * CORES["v6e"].units == pytest.approx(STEPS * (TRIPS + READ_TRIPS) * 8)
    assert (found.main_bundles, found.main_runs) == (27, STEPS * TRIPS)  # 0x5f to 0x79
    assert found.slot_use["MXU"] == pytest.approx(
        8 / 27 / 2
    )  # four steps of loading weights, each with its preparation


def test_memory_is_two_windows_of_each_operand_and_the_accumulator(recorded):
    x, w, out, total = 16 * 128 * 2, 8 * 128 * 128 * 2, 16 * 128 * 2, 16 * 128 * 4
    assert recorded.vmem_bytes == 2 * (x + w + out) + total


WRITTEN = """
     0   :  { %s9_s0 = smov 2 } /* entry bundle: %by_hand.1 = custom-call(%x) */
   0x1   :  { %s1_s1 = smov %s9_s0  ;;  %s2_s2 = smov 0 }
   0x2 LB: > { %s3_s3 = sphi %s2_s2, %s4_s3 /* a comment
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
SLOTS = "== CAPACTIY:\nMXU, VSTORE, VSTORE:SPILL\n2 2 2\n== UTILIZATION:\n" + "\n".join(
    ["0 0 0"] * 3 + ["2 0 0", "1 0 0", "0 1 1"] + ["0 0 0"] * 5 + ["0 1 0"]
)


def test_a_loop_of_three_products_waits_for_the_busier_unit():
    schedule = read_schedule(WRITTEN, SLOTS, "")
    (loop,) = schedule.loops
    assert loop == (2, 10, 5)  # 0, 2, 4, 6, 8: the step of 2 comes through a copy of a copy
    slow, fast = (estimate(schedule, CORES[name], Course()) for name in ("v5e", "v6e"))
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
        ((WRITTEN.replace("region7", "region8"), SLOTS, ""), "region 8, which starts nowhere"),
    ],
)
def test_texts_of_another_format_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        read_schedule(*texts)


def test_only_custom_calls_are_kernels():
    assert kernel_name(WRITTEN) == "by_hand.1"
    assert kernel_name(WRITTEN.replace("custom-call(", "fusion(")) is None


def test_every_bundle_of_a_straight_program_is_issued_once():
    straight = WRITTEN.replace("sbr.rel (!%p8_p0) target = $region7", "vnop")
    issued, _ = times_issued(read_schedule(straight, SLOTS, ""), Course())
    np.testing.assert_array_equal(issued, 1)
