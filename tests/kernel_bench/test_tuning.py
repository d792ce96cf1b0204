"""Blocks are tried pass by pass, the best are kept where their kernels look, and found there again."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from lumina_jax.chips import CHIPS
from lumina_jax.kernel_bench import ours, tuning
from lumina_jax.kernel_bench.contestants import Contestant
from lumina_jax.kernel_bench.estimate import Estimate
from lumina_jax.kernel_bench.measurements import Measurement, Trial
from lumina_jax.kernel_bench.problems import Problem
from lumina_jax.kernels.flash import tuned
from lumina_jax.kernels.flash.blocks import Sizes, choose

TOPOLOGY = "v6e:2x2"
FORWARD = [{"q": 128}, {"q": 256}, {"q": 512}]
BACKWARD = [{"q_backward": 128}, {"q_backward": 256}]
PEER = Contestant("peer", "jax", None, lambda problem: FORWARD, lambda problem: BACKWARD)
COSTS = {128: 30.0, 256: 10.0, 512: None}
"""Cycles by block; None does not compile."""


def measured(trial, cycles):
    kernel = Estimate("k.1", (1,), cycles, cycles, 1.0, 1, 1.0, {}, 0, 0, 0)
    return Measurement(TOPOLOGY, trial, (kernel,))


@pytest.fixture
def compiled(monkeypatch):
    """A compiler that knows COSTS, and the trials that it was given."""
    trials = []

    def measure(given, topology):
        for trial in given:
            trials.append(trial)
            costs = [COSTS[size] for size in trial.blocks.values()]
            if None in costs:
                yield Measurement(topology, trial, error="too large")
            else:
                yield measured(trial, sum(costs))

    monkeypatch.setattr(tuning, "measure", measure)
    return trials


def test_the_backward_pass_is_tuned_with_the_best_forward_pass(compiled):
    problem = Problem(512, 128, backward=True)
    told = []
    (best,) = tuning.tune([PEER], [problem], TOPOLOGY, told.append)
    assert best.trial == Trial("peer", problem, {"q": 256, "q_backward": 256})
    assert [dict(trial.blocks) for trial in compiled] == [*FORWARD, *({"q": 256, **blocks} for blocks in BACKWARD)]
    assert [trial.problem.backward for trial in compiled] == [False] * 3 + [True] * 2
    assert len(told) == 5


def test_recorded_blocks_are_used_and_others_stay(compiled, tmp_path):
    record = tmp_path / "blocks.json"
    forward, both = Problem(512, 128), Problem(512, 128, backward=True)
    tuning.keep([measured(Trial("peer", forward, {"q": 256}), 10.0)], [PEER], record)
    tuning.keep([measured(Trial("peer", both, {"q": 128, "q_backward": 256}), 10.0)], [PEER], record)
    tuning.keep([measured(Trial("peer", replace(forward, tokens=1024), {"q": 512}), 10.0)], [PEER], record)
    assert [row["blocks"] for row in json.loads(record.read_text())] == [{"q": 128}, {"q_backward": 256}, {"q": 512}]
    (found,) = tuning.with_recorded([PEER], [both], TOPOLOGY, record)
    assert found.trial.blocks == {"q": 128, "q_backward": 256}
    packed = Problem(512, 128, samples=2, length=256)
    (found,) = tuning.with_recorded([PEER], [packed], TOPOLOGY, record)
    assert found.trial.blocks == {"q": 128}  # of the row that is not packed
    (found,) = tuning.with_recorded([PEER], [forward], "v5e:2x2", record)
    assert found.trial.blocks == FORWARD[0]


def test_without_a_record_the_first_blocks_that_compile_are_used(compiled, monkeypatch, tmp_path):
    monkeypatch.setitem(COSTS, 128, None)
    (found,) = tuning.with_recorded([PEER], [Problem(512, 128)], TOPOLOGY, tmp_path / "blocks.json")
    assert (found.error, dict(found.trial.blocks)) == (None, {"q": 256})
    monkeypatch.setitem(COSTS, 256, None)
    (found,) = tuning.with_recorded([PEER], [Problem(512, 128)], TOPOLOGY, tmp_path / "blocks.json")
    assert found.error == "too large"


def test_our_table_is_written_anew_with_the_best_rows(monkeypatch, tmp_path):
    file = tmp_path / "tuned.py"
    shutil.copy(Path(tuned.__file__), file)
    old = {("v6e", 4224, 128): {"q": 704, "tile_q": 128}, ("v5e", 256, 128): {"q": 256}}
    monkeypatch.setattr(tuned, "TUNED", old)
    long = dict.fromkeys(("q", "kv_compute", "q_backward", "kv_compute_backward", "tile_kv"), 1408)
    best = [
        measured(Trial("ours", Problem(4224, 100), long), 1.0),  # 100 is padded to 128
        measured(Trial("ours", Problem(1152, 128), {}), 1.0),  # the rule is best: no row
        Measurement(TOPOLOGY, Trial("ours", Problem(2048, 128), {"q": 512}), error="too large"),
    ]
    ours.keep(best, file)
    written = runpy.run_path(str(file))["TUNED"]
    assert written == {**old, ("v6e", 4224, 128): {"q": 1408, "tile_q": 128, **long}}
    assert file.read_text().startswith(Path(tuned.__file__).read_text().split("TUNED:")[0])
    assert max(map(len, file.read_text().splitlines())) <= 120


def test_every_size_that_is_tried_is_one_that_the_kernels_then_use():
    for problem in (Problem(4224, 128), Problem(1088, 48), Problem(4096, 128, samples=16, length=256)):
        rows = [*ours.OURS.forward(problem), *ours.OURS.backward(problem)]
        assert rows[0] == {}
        key = ours.row_of(problem, "v6e")
        assert key[1] >= problem.tokens
        for row in rows:
            with mock.patch.dict(tuned.TUNED, {key: row}):
                blocks = choose(Sizes(problem.tokens, 0, 32, 32, problem.width), CHIPS["v6e"])
            blocks.check(key[1], 32, problem.width)
            assert {name: getattr(blocks, name) for name in row} == row
