"""`lumina bench train` and `sample`: FLOPs, kinds of work in a trace, peaks, and comparisons."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lumina_jax.aot.flops import step_flops
from lumina_jax.aot.hlo import read_hlo
from lumina_jax.aot.plan import batch_load, drawing_flops
from lumina_jax.chips import CHIPS
from lumina_jax.commands import bench
from lumina_jax.parallel.mesh import configured_mesh
from lumina_jax.throughput import peak
from lumina_jax.throughput.kinds import ATTENTION, COPIES, LINKS, OTHERS, PRODUCTS, kind_of, kinds_of_events
from lumina_jax.throughput.report import comparison, read_throughput
from lumina_jax.throughput.train import random_batch
from tests.training.processes import here
from tests.training.tiny import label_config

CONFIG = label_config()
HLO = """
HloModule jit_step

%moved (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %turned = f32[8,8]{0,1} transpose(%a), dimensions={1,0}
}

%multiplied (a: f32[8,8], b: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %inner = f32[8,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %scaled = f32[8,8]{1,0} multiply(%inner, %b)
}

%added (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %sum = f32[8,8]{1,0} add(%a, %a)
}

ENTRY %main (x: f32[8,8], q: f32[2,4,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %q = f32[2,4,8]{2,1,0} parameter(1)
  %fusion.1 = f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%moved
  %fusion.2 = f32[8,8]{1,0} fusion(%x, %fusion.1), kind=kOutput, calls=%multiplied
  %fusion.3 = f32[8,8]{1,0} fusion(%fusion.2), kind=kLoop, calls=%added
  %dot.4 = f32[2,4,4]{2,1,0} dot(%q, %q), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={2}
  %all-reduce.5 = f32[8,8]{1,0} all-reduce(%fusion.3), replica_groups={{0,1}}, to_apply=%added
  %kernel.6 = f32[8,8]{1,0} custom-call(%fusion.3), custom_call_target="tpu_custom_call"
  %library.7 = f32[8,8]{1,0} custom-call(%fusion.3), custom_call_target="__cublas$gemm"
  %copy.8 = f32[8,8]{1,0} copy(%fusion.3)
  ROOT %exponential.9 = f32[8,8]{1,0} exponential(%copy.8)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.json").write_text(CONFIG.to_json())
    file = folder / "train.json"
    done = here(bench.main, "train", folder / "tiny.json", "--runs", "3", "--warmup", "1", "--json", file)
    assert done.returncode == 0, done.stderr
    return file, done.stdout


def test_a_training_step_is_measured_with_its_model_flops_and_rates(measured):
    file, said = measured
    found = json.loads(file.read_text())
    assert found["model_flops"] == step_flops(CONFIG.model, batch_load(CONFIG)).total
    assert (found["samples"], found["tokens"], found["runs"]) == (4, 4 * 16, 3)
    assert found["samples_per_second"] == pytest.approx(4 / found["seconds"])
    assert found["utilisation"] == pytest.approx(found["model_flops"] / found["seconds"] / found["peak_flops"])
    assert found["seconds_low"] <= found["seconds"] <= found["seconds_high"]
    assert found["program_bytes"] > 4 * 4 * 1000  # parameters, average and two moments
    assert "samples/s" in said


def test_the_breakdown_of_the_trace_names_products_and_is_about_as_long_as_the_step(measured):
    found = read_throughput(measured[0])
    assert {PRODUCTS, ATTENTION, OTHERS} <= found.kinds.keys()
    assert all(seconds > 0 for seconds in found.kinds.values())
    assert sum(found.kinds.values()) < 20 * found.seconds_high


def test_what_each_instruction_does_is_read_in_the_program():
    module = read_hlo(HLO)
    kinds = {name: kind_of(module, module.entry, one) for name, one in module.entry.instructions.items()}
    assert kinds == {
        "x": None, "q": None, "fusion.1": COPIES, "fusion.2": PRODUCTS, "fusion.3": OTHERS, "dot.4": ATTENTION,
        "all-reduce.5": LINKS, "kernel.6": ATTENTION, "library.7": PRODUCTS, "copy.8": COPIES, "exponential.9": OTHERS,
    }  # fmt: skip
    events = [("fusion.2", 2.0), ("library.7", 1.0), ("dot.4", 0.5), ("main", 9.0), ("elsewhere", 9.0)]
    assert kinds_of_events(module, iter(events)) == {PRODUCTS: 3.0, ATTENTION: 0.5}


def test_a_batch_for_timing_has_full_rows_of_samples_of_equal_length():
    config = CONFIG.replace(data={"row_tokens": 40, "samples_per_row": 2})
    batch = random_batch(config, batch_load(config), configured_mesh(config.mesh))
    assert np.asarray(batch.tokens.segment_ids)[0].tolist() == [1] * 20 + [2] * 20
    assert np.asarray(batch.present).tolist() == [[1, 1]] * 4
    assert np.std(np.asarray(batch.tokens.patches)) == pytest.approx(1, abs=0.05)
    assert np.asarray(batch.tokens.kinds).min() == 1


def test_drawing_is_measured(tmp_path):
    config = CONFIG.replace(sample={"solver": "euler", "steps": 2})
    (tmp_path / "tiny.json").write_text(config.to_json())
    words = ["--runs", "1", "--warmup", "0", "--trace-runs", "0", "--json", tmp_path / "sample.json"]
    done = here(bench.main, "sample", tmp_path / "tiny.json", *words)
    assert done.returncode == 0, done.stderr
    found = read_throughput(tmp_path / "sample.json")
    assert found.model_flops == drawing_flops(config, batch_load(config))
    assert (found.samples, found.kinds) == (4, {})


@pytest.mark.slow
def test_a_comparison_prints_ratios_and_fails_if_the_program_became_slower(measured, tmp_path):
    file, _ = measured
    old = read_throughput(file)
    faster = dataclasses.replace(old, seconds=old.seconds / 1e6)
    (tmp_path / "faster.json").write_text(faster.to_json())
    words = ["train", file.parent / "tiny.json", "--runs", "1", "--warmup", "0", "--trace-runs", "0", "--compare"]
    done = here(bench.main, *words, tmp_path / "faster.json")
    assert done.returncode == 1
    assert "samples/s" in done.stdout
    lines = list(comparison(dataclasses.replace(faster, devices=2), old))
    assert f"not alike: devices was {old.devices} and is 2" in lines
    assert any(line.startswith("samples/s") and line.endswith("x 1000000.000") for line in lines)
    with pytest.raises(ValueError, match="must be compared with one of the same"):
        list(comparison(dataclasses.replace(old, what="sample"), old))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--runs", "0"], "--runs=0 must be at least 1"),
        (["--tolerance", "2"], "--tolerance=2.0 must lie between 0 and 1"),
        (["--compare", "nothing.json"], "there is no nothing.json"),
    ],
)
def test_arguments_of_a_measurement_that_cannot_work_are_refused(tmp_path, flags, said):
    (tmp_path / "tiny.json").write_text(CONFIG.to_json())
    done = here(bench.main, "train", tmp_path / "tiny.json", *flags)
    assert done.returncode == 1
    assert said in done.stderr


def test_tpus_and_known_gpus_have_published_peaks_and_others_that_of_a_product(monkeypatch):
    class Device:
        device_kind, platform = "TPU v5 lite", "tpu"

        def __init__(self, kind=device_kind):
            self.device_kind = kind

        def memory_stats(self):
            return None

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert peak.present_peak("bfloat16").flops == CHIPS["v5e"].flops
    monkeypatch.setattr(jax, "devices", lambda: [Device("NVIDIA L4")])
    monkeypatch.setattr(peak, "product_rate", lambda side, dtype: 7.0)
    monkeypatch.setattr(peak, "_memory", lambda device: None)
    assert peak.present_peak("bfloat16").flops == 121e12
    assert peak.present_peak("float32").flops == 7.0  # published peaks are those of bfloat16
    monkeypatch.undo()
    monkeypatch.setitem(peak.SIDES, "cpu", 64)
    found = peak.present_peak("float32")
    assert found.flops > 1e6
    assert "64 x 64, measured" in found.source


def test_the_rate_of_a_product_counts_two_operations_for_each_of_its_terms(monkeypatch):
    times = iter(range(100))
    monkeypatch.setattr(peak.time, "perf_counter", lambda: float(next(times)))
    assert peak.product_rate(32, "float32", trials=3) == 2.0 * 32**3


def test_a_file_of_a_measurement_is_checked(tmp_path):
    (tmp_path / "bad.json").write_text('{"what": "train"}')
    with pytest.raises(ValueError, match="device: field required"):
        read_throughput(tmp_path / "bad.json")
