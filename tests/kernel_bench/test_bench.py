"""`bench kernels`: problems and their floors, measurements and tables, and one real compilation."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lumina_jax import libtpu
from lumina_jax.chips import CHIPS
from lumina_jax.commands import bench
from lumina_jax.commands.bench import kernels
from lumina_jax.kernel_bench import compiler
from lumina_jax.kernel_bench.contestants import near
from lumina_jax.kernel_bench.estimate import Estimate
from lumina_jax.kernel_bench.measurements import Measurement, Trial
from lumina_jax.kernel_bench.problems import Problem
from lumina_jax.kernel_bench.table import lines, summary


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_a_chip_that_never_waits_reaches_the_vendors_peak(chip):
    problem = Problem(4224, chip.matrix_unit)
    operations = 4 * problem.heads * problem.tokens**2 * problem.width
    seconds = chip.microseconds(problem.floor_cycles(chip)) * 1e-6
    assert operations / seconds == pytest.approx(chip.flops, rel=5e-3)


def test_narrow_heads_cost_what_the_unit_is_wide():
    floors = {width: Problem(1024, width).floor_cycles(CHIPS["v6e"]) for width in (48, 128, 256, 257)}
    assert floors[48] == floors[128] == floors[256] == floors[257] / 2
    assert Problem(1024, 48).floor_cycles(CHIPS["v5e"]) == Problem(1024, 128).floor_cycles(CHIPS["v5e"])


def test_a_floor_counts_what_may_be_seen():
    chip = CHIPS["v6e"]
    whole, packed = Problem(4096, 128), Problem(4096, 128, samples=16, length=256)
    assert whole.floor_cycles(chip) == 16 * packed.floor_cycles(chip)
    half = replace(packed, samples=8)
    assert packed.floor_cycles(chip) == 2 * half.floor_cycles(chip)
    text = replace(packed, text=128)
    assert text.floor_cycles(chip) / packed.floor_cycles(chip) == (256 + 128) / 256
    both = replace(whole, backward=True)
    assert both.floor_cycles(chip) == pytest.approx(3.5 * whole.floor_cycles(chip))
    parts = [both.floor_cycles(chip, backward=one) for one in (False, True)]
    assert sum(parts) == pytest.approx(both.floor_cycles(chip))


def test_segment_ids_number_the_samples_and_leave_padding_out():
    problem = Problem(7, 128, samples=2, length=3, text=2)
    np.testing.assert_array_equal(problem.segment_ids(), [1, 1, 1, 2, 2, 2, 0])
    np.testing.assert_array_equal(problem.text_segment_ids(padded_to=5), [1, 1, 2, 2, 0])
    assert problem.is_packed
    assert not Problem(6, 128, samples=1, length=6).is_packed


def test_problems_that_no_row_can_hold_are_refused():
    with pytest.raises(ValueError, match="at least 4096"):
        Problem(4000, 128, samples=16, length=256)
    with pytest.raises(ValueError, match="must be positive"):
        Problem(4000, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernels", "--topology", "v9:2x2"], "chips: v4, v5e"),
        (["kernels", "--topology", "v6e"], "CHIP:AxB"),
        (["kernels", "--packed", "16"], "SAMPLESxTOKENS"),
        (["kernels", "--contestants", "nobody"], "is not one of"),
        (["kernels"], "make aot-setup"),
    ],
)
def test_mistakes_and_a_missing_compiler_are_named_before_any_work(monkeypatch, tmp_path, capsys, words, message):
    monkeypatch.setattr(libtpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(libtpu.sys, "prefix", str(tmp_path))  # where no compiler lies
    monkeypatch.setattr(compiler.subprocess, "Popen", lambda *_, **__: pytest.fail("started to work"))
    with pytest.raises(SystemExit):
        bench.main(words)
    assert re.search(message, capsys.readouterr().err)


def test_every_length_meets_every_width():
    arguments = kernels.Kernels(packed="4x1056", width=(48, 128), backward=True)
    found = kernels.problems_of(arguments)
    assert [(problem.tokens, problem.width, problem.samples) for problem in found] == [(4224, 48, 4), (4224, 128, 4)]
    several = kernels.problems_of(kernels.Kernels(tokens=(256, 4224)))
    assert [problem.tokens for problem in several] == [256, 4224]


def measurement(name="ours", cycles=1.2e6, error=None):
    slots = {"MXU": 0.9, "VALU": 0.5, "XLU": 0.0, "EUP": 0.5, "VLOAD": 0.3, "VSTORE": 0.3}
    kernel = Estimate("attention.1", (32, 6), cycles, cycles, 1.1e6, 5972, 192.0, slots, 17, 11, 12 * 2**20)
    trial = Trial(name, Problem(4224, 128), {"q": 704})
    return Measurement("v6e:2x2", trial, () if error else (kernel,), 5_000_000, 1.5, error)


def test_a_measurement_survives_the_pipe():
    for one in (measurement(), measurement(error="no VMEM")):
        assert Measurement.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_line_shows_time_share_and_main_loop():
    (line,) = lines(measurement())
    floor = Problem(4224, 128).floor_cycles(CHIPS["v6e"])
    for shown in ("685.7", f"{floor / 1.2e6:.1%}", "5972 x 192", "90%", " 17 ", "12.0M", "q=704"):
        assert shown in line
    assert list(lines(measurement(error="no VMEM"))) == [f"{'ours':<18}  no VMEM"]


def test_the_summary_compares_with_ours():
    found = [measurement("slow", 2.4e6), measurement(), measurement("broken", error="none")]
    assert list(summary(found, "ours")) == ["slow takes 2.00 x the cycles of ours"]


def test_blocks_near_a_size_divide_the_padded_row():
    assert near(4224, 1500) == 1408
    assert near(4224, 384) == 384
    assert near(1088, 100) == 128
    assert near(256, 4224) == 256


@pytest.mark.aot
def test_every_product_of_a_peer_is_counted_and_no_estimate_beats_the_floor():
    problem = Problem(512, 128, heads=2, backward=True)
    blocks = {"q": 256, "kv": 256, "kv_compute": 256}
    blocks |= {f"{name}_backward": 256 for name in blocks}
    forward = Trial("jax flash", replace(problem, backward=False), blocks)
    wrong = Trial("jax flash", problem, {**blocks, "kv_compute": 384})
    measured = list(compiler.measure([forward, wrong, Trial("jax flash", problem, blocks)], "v6e:2x2"))
    assert measured[1].error is not None
    chip = CHIPS["v6e"]
    (alone,), both = measured[0].kernels, measured[2].kernels
    assert alone.product_cycles == pytest.approx(forward.problem.floor_cycles(chip), rel=1e-3)
    assert len(both) == 3  # forward, dq, dk and dv; both backward kernels compute q k^T and do v^T
    again = 2 / 5 * problem.floor_cycles(chip, backward=True)
    products = sum(kernel.product_cycles for kernel in both)
    assert products == pytest.approx(problem.floor_cycles(chip) + again, rel=1e-3)
    assert 0 < measured[2].share_of_floor < 1
    assert measured[2].microseconds == pytest.approx(measured[2].cycles / 1750)
