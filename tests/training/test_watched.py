"""Steps that say when they compile, and traces of some of them."""

from itertools import count

import jax
import jax.numpy as jnp
import pytest

from lumina_jax.training import watched as module
from lumina_jax.training.watched import watched
from tests.training.tiny import config


def run_steps(folder, profile, *, start=0, stop=8, notes=None):
    """Steps start + 1 to stop of a step that adds one."""
    settings = config(folder, run={"steps": 8, "profile": profile})
    notes = [] if notes is None else notes
    add = jax.jit(lambda state, batch: (state + batch, state))
    state = jnp.float32(start)
    with watched(add, settings, start, notes.append, clock=count().__next__) as step:
        for _ in range(start, stop):
            state, _ = step(state, jnp.float32(1))
    assert state == stop
    return notes


def traces(folder):
    return sorted((folder / "tiny" / "profile").rglob("*.xplane.pb"))


def test_the_first_step_says_that_it_compiles_and_how_long_that_took(tmp_path):
    assert run_steps(tmp_path, "") == ["compiling the training step", "compiled in 1 s; training"]
    assert not traces(tmp_path)


def test_a_trace_of_the_steps_asked_for_lies_in_the_run(tmp_path, monkeypatch):
    started, real = [], jax.profiler.start_trace
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: (started.append(folder), real(folder)))
    notes = run_steps(tmp_path, "3:5")
    assert notes[-1] == f"the trace of steps 3 to 5 is in {tmp_path / 'tiny' / 'profile'}"
    assert len(traces(tmp_path)) == len(started) == 1
    assert traces(tmp_path)[0].stat().st_size > 0
    assert list((tmp_path / "tiny" / "profile").rglob("*.trace.json.gz"))


def test_a_trace_is_written_when_training_stops_within_it(tmp_path):
    notes = run_steps(tmp_path, "3:5", stop=4)
    assert "the trace of steps" in notes[-1]
    assert traces(tmp_path)


@pytest.mark.parametrize(("start", "recorded"), [(3, True), (5, False)])
def test_a_run_that_resumes_records_what_is_left(tmp_path, start, recorded):
    notes = run_steps(tmp_path, "3:5", start=start)
    assert bool(traces(tmp_path)) == recorded
    assert ("no trace is recorded: steps 3:5 are done" in notes) != recorded


@pytest.mark.parametrize("name", ["start_trace", "stop_trace"])
def test_a_trace_that_cannot_be_written_never_stops_training(tmp_path, monkeypatch, name):
    real = getattr(jax.profiler, name)

    def fail(*arguments):
        if name == "stop_trace":
            real()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.jax.profiler, name, fail)
    notes = run_steps(tmp_path, "3:5")
    assert [note for note in notes if "No space left on device" in note and "training continues" in note]
