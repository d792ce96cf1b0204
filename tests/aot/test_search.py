"""The search for a mesh, a remat policy and micro-batches, with compilation replaced."""

import dataclasses

import jax
import pytest

from lumina_jax.aot import search
from lumina_jax.aot.memory import Memory
from lumina_jax.aot.plan import DoesNotFitError, Plan, Report, plan_mesh
from lumina_jax.aot.roofline import StepEstimate
from lumina_jax.chips import parse_topology
from lumina_jax.commands.aot import Arguments
from lumina_jax.config_files import load_config, recommended_flags
from tests.aot.test_plan import MEMORY_KINDS, TINY, chips

EXPECTED = {
    ("dots", 1): 0.8023, ("full", 1): 0.9212, ("attention", 1): 0.8741, ("none", 1): 0.9147,
    ("feed_forward", 1): 0.8444,
    ("dots", 2): 0.9207, ("full", 2): 1.070, ("attention", 2): 1.030, ("none", 2): 1.103,
}  # fmt: skip
"""Seconds of a step of t2i_5b_1024 on v5p:4x4x4 with fsdp 64, compiled with libtpu 0.0.42, by remat policy and
micro-batches."""


def test_a_search_prefers_what_is_fast_and_fits_and_compiles_only_that(monkeypatch):
    """With compilation replaced: the first candidate turns out too large, and the third faster than the second."""
    plan = Plan(config=TINY.replace(data={"batch_rows": 64, "row_tokens": 1024}), topology=parse_topology("v5e:4x4"))
    monkeypatch.setattr(search, "devices_of", lambda topology: chips(4, 4))
    found = sorted(search.guesses(plan), key=search.rank)
    assert len(found) > 50
    fastest = min(one.seconds for one in found)
    assert found[0].seconds <= 1.01 * fastest
    as_fast = [one for one in found if search.rank(one)[0] == search.rank(found[0])[0]]
    assert found[0].memory == min(one.memory for one in as_fast)
    assert {one.plan.config.mesh.ring for one in found if one.plan.config.mesh.sequence == 16} == {4}  # of 4 heads
    tried = []

    def compiled(candidate):
        tried.append(candidate)
        if len(tried) == 1:
            raise DoesNotFitError("Used 20G of 15.75G hbm", 20e9)
        if len(tried) == 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem")
        expected = [None, 2.0, 1.0, None, 3.0][len(tried) - 1]
        report = object.__new__(Report)
        estimate = StepEstimate(*[expected] * len(StepEstimate._fields))
        vars(report).update(plan=candidate, memory=Memory(**dict.fromkeys(MEMORY_KINDS, 1e9)), estimate=estimate)
        return report

    monkeypatch.setattr(search, "compile_plan", compiled)
    monkeypatch.setattr(search, "guesses", lambda plan: found)
    said = []
    report = search.search(plan, 5, said.append)
    assert not any(one.quick for one in tried)
    assert {one.config.model.remat for one in tried} == set(search.KEPT_VALUES)
    assert tried[0].config == found[0].plan.config
    assert report.plan.config == tried[2].config
    assert [line.split(":")[0] for line in said if line.startswith("does not")] == ["does not fit", "does not compile"]
    assert said[-1] == f"recommended: {search.flags(tried[2].config)}"
    tried.clear()
    quick = search.search(dataclasses.replace(plan, quick=True), 4, said.append)
    assert quick.plan.config == tried[-1].config
    assert len(tried) == 2  # whose times say nothing


def test_a_search_recommends_the_program_of_the_least_expected_time_of_all_that_were_compiled_for_5b(monkeypatch):
    """The candidates by arithmetic, their times recorded. Two micro-batches gather the weights twice: where that was
    taken to cost nothing, no candidate of one was compiled."""
    plan = Plan(config=load_config("t2i_5b_1024"), topology=parse_topology("v5p:4x4x4"))
    found = list(search.guesses(plan, search.described_devices(plan.topology)))

    def compiled(candidate):
        config, report = candidate.config, object.__new__(Report)
        assert config.mesh.fsdp == 64
        expected = EXPECTED.get((config.model.remat, config.optimizer.accumulate))
        if expected is None:
            raise DoesNotFitError("not recorded", None)
        vars(report).update(plan=candidate, estimate=StepEstimate(*[expected] * len(StepEstimate._fields)))
        return report

    monkeypatch.setattr(search, "compile_plan", compiled)
    monkeypatch.setattr(search, "guesses", lambda plan: found)
    best = search.search(plan, Arguments().compiles, [].append)
    assert best.estimate.expected == min(EXPECTED.values())
    assert (best.plan.config.model.remat, best.plan.config.optimizer.accumulate) == ("dots", 1)


def test_a_refused_mesh_is_answered_with_one_that_suits_the_topology():
    """By the lines of the configuration, or else by arithmetic; what was asked for besides the mesh stays."""
    assert recommended_flags("t2v_7b_128k", "v6e:16x16") == "--mesh.fsdp 8 --mesh.sequence 32"
    assert recommended_flags("t2v_7b_128k", "v6e:8x8") is None
    target = parse_topology("v5e:4x4")
    plan = Plan(config=TINY.replace(data={"batch_rows": 8, "row_tokens": 1024}, mesh={"fsdp": 16}), topology=target)
    with pytest.raises(ValueError, match="rows of a batch"):
        plan_mesh(plan, chips(4, 4))
    words = search.suggested_mesh(plan, chips(4, 4)).split()
    mesh = {name.removeprefix("--mesh."): int(size) for name, size in zip(words[::2], words[1::2])}
    assert mesh["tensor"] == 1
    better = plan.config.replace(mesh=mesh)
    assert plan_mesh(Plan(config=better, topology=target), chips(4, 4)).size == 16


def test_less_is_kept_and_more_computed_by_full_rematerialisation():
    plan = Plan(config=load_config("t2i_5b_1024"), topology=parse_topology("v5p:4x4x4"))
    shares, held = search.Shares(1, 64, 1, 1, 1), search.Held(10**9, 10**9, 0.0)
    none, dots, kept, attention, full = (
        search.judged(
            dataclasses.replace(plan, config=plan.config.replace(model={"remat": name})), shares, plan.load, held
        )
        for name in ("none", "dots", "feed_forward", "attention", "full")
    )
    assert none.memory > dots.memory > kept.memory > attention.memory > full.memory
    assert dots.seconds < none.seconds  # which write and read more
    assert dots.seconds < kept.seconds < attention.seconds < full.seconds
