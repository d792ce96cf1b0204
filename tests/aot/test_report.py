"""What is printed and written of a recorded step: the one that test_traffic.py describes."""

import json
import re
from pathlib import Path

import pytest

from lumina_jax.aot.hlo import read_hlo
from lumina_jax.aot.memory import Memory
from lumina_jax.aot.plan import DoesNotFitError, Plan, Report
from lumina_jax.aot.report import as_json, failure_lines, ideal_fsdp_bytes, report_lines
from lumina_jax.aot.roofline import estimate_step
from lumina_jax.aot.timeline import CompileTarget, timeline
from lumina_jax.aot.traffic import collectives, work
from lumina_jax.chips import parse_topology
from lumina_jax.config import Config, ModelConfig

RECORDED = Path(__file__).parent / "recorded" / "gathered_v5p_2x2x2.hlo"
PLACES = [(x, y, z) for x in range(2) for y in range(2) for z in range(2)]
WEIGHTS = 5 * 2 * 1024 * 2048


def recorded_report(temporaries=1e9):
    config = Config(model=ModelConfig(layers=5, heads=8, width=1024)).replace(mesh={"fsdp": 8})
    plan = Plan(config=config, topology=parse_topology("v5p:2x2x2"))
    module = read_hlo(RECORDED.read_text())
    done, sent = work(module), tuple(collectives(module))
    course = timeline(module, CompileTarget(topology=plan.topology, coordinates=PLACES))
    model_flops = 8 * 5 * 6 * 2.0 * 256 * 1024 * 2048
    return Report(
        plan=plan,
        load=plan.load,
        memory=Memory(
            parameters=4.0 * WEIGHTS / 8, average=2e9, moments=3e9, inputs=0.0, activations=4e9, gradients=5e9,
            temporaries=temporaries, outputs=0.0, program=1e6, host=7e9,
        ),
        collectives=sent,
        work=done,
        model_flops=model_flops,
        estimate=estimate_step(
            done, sent, PLACES, plan.topology, in_order=course.seconds, model_flops=model_flops, head_width=128
        ),
        timeline=course,
        parameters=WEIGHTS,
        compile_seconds=1.0,
        program="\n" * 10,
    )  # fmt: skip


def test_a_report_names_memory_by_kind_and_what_fsdp_sends():
    text = "\n".join(report_lines(recorded_report()))
    assert re.search(r"memory of a device: 15\.01 of 102\.80 GB: fits, 87\.79 GB left", text)
    for line in (
        "2.000 GB  moving average",
        "4.000 GB  activations",
        "5.000 GB  gradients",
        "7.000 GB  in the memory of",
    ):
        assert line in text
    assert "all-gather of bf16 among 2, 60 times" in text
    assert "that is 1.00 times the ideal of FSDP" in text
    assert "1.17 times as many" in text  # seven products a layer, of which the model needs six


def test_the_ideal_of_fsdp_is_what_the_recorded_step_sends():
    report = recorded_report()
    sent = sum(one.times * one.sent_bytes(8) for one in report.collectives if one.kind != "all-reduce")
    assert ideal_fsdp_bytes(report) == sent


def test_a_report_that_does_not_fit_says_by_how_much_and_what_would_help():
    report = recorded_report(temporaries=100e9)
    assert not report.fits
    text = "\n".join(report_lines(report))
    assert "does NOT fit, 11.21 GB too much" in text
    assert "would help: --model.remat offload" in text
    failed = "\n".join(failure_lines(report.plan, DoesNotFitError("Used 200G of 95.74G hbm", 200e9)))
    assert "does NOT fit: 200.00 GB of 102.80 GB a device, 97.20 GB too much" in failed
    assert "would help: --optimizer.accumulate 2" in failed


def test_json_holds_every_number_and_sums_to_the_same():
    found = json.loads(json.dumps(as_json(recorded_report())))
    memory = found["memory"]
    assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"] - memory["host"])
    estimate = found["estimate"]
    assert estimate["at_least"] == max(estimate[name] for name in ("arithmetic", "memory", "links"))
    assert estimate["expected"] == pytest.approx(sum(estimate["by_kind"].values()))
    assert estimate["expected"] > estimate["at_least"]
    assert estimate["mfu"] == pytest.approx(found["model_flops"] / (8 * 459e12 * estimate["expected"]))
    assert (
        sum(one["sent_bytes"] for one in found["collectives"] if one["kind"] == "reduce-scatter") == 2 * WEIGHTS * 7 / 8
    )
    assert found["config"]["mesh"]["fsdp"] == 8
    assert len(found["assumptions"]) > 3
