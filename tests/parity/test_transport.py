"""Every recorded case of the released transport, and the format's own errors."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lumina_jax.parity import transport
from lumina_jax.parity.golden import Comparison, Golden, attempt, compare

GOLDEN = Path(__file__).parents[1] / "golden"


def write(path, arrays, meta):
    save_file({name: np.asarray(array, np.float32) for name, array in arrays.items()}, path, {"meta": json.dumps(meta)})
    return path


@pytest.mark.parametrize("name", ["transport_paths", "transport_ode"])
def test_every_recorded_case_is_reproduced(name):
    golden = Golden(GOLDEN / f"{name}.safetensors")
    results = list(transport.run(golden))
    assert not [result for result in results if not result.passed]
    grids = [key for key in golden.raw if key.startswith("out/mini_t_")]
    assert len(results) == len(golden.calls) + len(grids)


def test_files_with_other_shapes_steps_and_no_shift_are_run_by_what_they_record(tmp_path):
    def model(x, t):
        return np.tanh(x) * t + 0.3 * np.sin(3 * t) - 0.5 * x * (1 - t)

    x, states = np.random.default_rng(0).standard_normal((2, 5)), []
    grid = np.linspace(0, 1, 8)
    for shift in (1.0, 6.0):
        times, y = grid / (grid + shift - shift * grid), x
        states.append([y])
        for start, end in itertools.pairwise(times):
            y = y + (end - start) * model(y, start)
            states[-1].append(y)
    arrays = {"in/x": x}
    calls = {}
    for case, shift, trajectory in (("mini_a", None, states[0]), ("t2i_b", 6.0, states[1])):
        calls[case] = {"kwargs": {"method": "euler", "num_steps": 8, "time_shifting_factor": shift, "idx": [2, 7]}}
        arrays |= {f"out/{case}/y": trajectory[-1], f"out/{case}/traj": [trajectory[2], trajectory[7]]}
    meta = {"cls": "transport Sampler.sample_ode", "calls": calls, "model": f"model(x,t) = {transport.FORMULA}"}
    results = list(transport.run(Golden(write(tmp_path / "new.safetensors", arrays, meta))))
    assert [result.case for result in results if result.passed] == ["mini_a", "t2i_b"]

    calls["t2i_b"]["kwargs"]["time_shifting_factor"] = 5.0
    results = list(transport.run(Golden(write(tmp_path / "wrong.safetensors", arrays, meta))))
    assert [result.passed for result in results] == [True, False]


def test_a_case_of_an_unknown_kind_fails_and_the_others_still_run(tmp_path):
    arrays = {"in/snr_uniform/u": [0.5], "out/snr_uniform/t": [0.5]}
    calls = {"mystery": {"kwargs": {}}, "snr_uniform": {"kwargs": {}}}
    meta = {"cls": "Flag-DiT-ImageNet/transport/path.py", "calls": calls, "model": transport.FORMULA}
    results = list(transport.run(Golden(write(tmp_path / "new.safetensors", arrays, meta))))
    assert [result.passed for result in results] == [False, True]
    assert "mystery" in results[0].note


@pytest.mark.parametrize(("change", "passes"), [(3e-6, True), (2e-5, False)])
def test_states_that_grow_large_are_held_to_their_largest(change, passes):
    """Each number carries the rounding of the thousands that it is the difference of."""
    golden, case = Golden(GOLDEN / "transport_ode.safetensors"), "sde_Heun_Linear_noise"
    recorded = golden.raw[f"out/{case}/y"]
    largest = np.abs(recorded).max()
    recorded.flat[np.abs(recorded).argmin()] += change * largest
    golden.calls = {case: golden.calls[case]}
    result = next(transport.run(golden))
    assert result.passed == passes
    assert f"of the largest state, {largest:.3g}" in result.note


def test_files_of_another_class_or_model_are_refused(tmp_path):
    meta = {"cls": "NextDiT", "calls": {}}
    with pytest.raises(ValueError, match="not a transport file"):
        next(transport.run(Golden(write(tmp_path / "a.safetensors", {"x": [1.0]}, meta))))
    meta = {"cls": "Flag-DiT-ImageNet/transport/path.py", "calls": {}, "model": "x * t"}
    with pytest.raises(ValueError, match="analytic model"):
        next(transport.run(Golden(write(tmp_path / "b.safetensors", {"x": [1.0]}, meta))))


def test_a_golden_file_is_read_by_parts_and_lists_stay_lists(tmp_path):
    arrays = {f"in/case/x.{index}": [index] for index in range(11)} | {"out/case/y": [5.0], "param/a.0.weight": [1.0]}
    meta = {"cls": "Model", "calls": {"case": {}}, "config": {"dim": 4}}
    golden = Golden(write(tmp_path / "file.safetensors", arrays, meta))
    assert [float(array[0]) for array in golden.inputs("case")["x"]] == list(range(11))
    assert list(golden.outputs("case")) == ["y"]
    assert list(golden.parameters) == ["a.0.weight"]
    assert (golden.name, golden.cls, golden.config) == ("file.safetensors", "Model", {"dim": 4})


def test_other_files_are_no_golden_files(tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_file({"x": np.ones(2, np.float32)}, plain)
    text = tmp_path / "text.safetensors"
    text.write_text("nothing")
    for path in (plain, text, tmp_path / "missing.safetensors"):
        with pytest.raises(ValueError, match="not a golden file"):
            Golden(path)


def test_a_comparison_passes_within_its_tolerance_and_names_the_worst_array():
    theirs = np.array([1.0, 100.0])
    assert compare("case", [("a", theirs + np.array([0, 0.5]), theirs, 0.0, 0.01)]) == Comparison(
        "case", 0.5, 1.0, True
    )
    failed = compare("case", [("a", theirs + 0.1, theirs, 0.2, 0.0), ("b", theirs + 0.3, theirs, 0.1, 0.0)])
    assert not failed.passed
    assert failed.note.startswith("b: 3")
    assert failed.difference == pytest.approx(0.3)


@pytest.mark.parametrize("ours", [np.ones(3), np.array([np.nan, 1.0])])
def test_another_shape_or_a_nan_fails(ours):
    assert not compare("case", [("a", ours, np.ones(2), 1.0, 1.0)]).passed


def test_a_case_without_outputs_or_with_an_error_fails():
    assert not compare("case", []).passed
    assert "ZeroDivisionError" in attempt("case", lambda: 1 / 0).note
