"""Tables of runs: what a line may hold, and what is refused."""

import json

import numpy as np
import pytest

from lumina_jax.scaling.table import cells_of, read_runs, runs_of_recipe

RUN = {"recipe": "flag", "parameters": 1000, "samples": 5.5, "flops": 1e9, "loss": 0.5, "seed": 0}


def written(tmp_path, *lines):
    file = tmp_path / "runs.jsonl"
    file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return file


def test_runs_keep_their_other_keys_and_lines(tmp_path):
    file = written(tmp_path, "", {**RUN, "fid": 3, "line": "x", "curve": [[1, 2.5]]})
    (run,) = read_runs(file)
    assert (run.line, run.metric("fid"), run.curve) == (2, 3.0, [(1.0, 2.5)])
    assert run.model_extra == {"fid": 3, "line": "x"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'recipe'", r"runs.jsonl: line 2 must be JSON"),
        ([1], r"line 2 has wrong values"),
        ({**RUN, "loss": float("nan")}, "line 2 has wrong values: loss: .*finite.*nan"),
        ({**RUN, "loss": float("inf")}, "line 2 has wrong values: loss: .*finite.*inf"),
        ({**RUN, "loss": -0.5}, "line 2 .*loss: .*greater than 0.*-0.5"),
        ({**RUN, "flops": 0}, "line 2 .*flops: .*greater than 0"),
        ({**RUN, "parameters": "10"}, "line 2 .*parameters: .*number.*'10'"),
        ({**RUN, "parameters": True}, "line 2 .*parameters"),
        ({**RUN, "seed": 0.5}, "line 2 .*seed"),
        ({**RUN, "recipe": ""}, "line 2 .*recipe"),
        ({key: RUN[key] for key in RUN if key != "samples"}, "line 2 .*samples: field required"),
    ],
)
def test_wrong_lines_are_named_with_rule_and_value(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_runs(written(tmp_path, RUN, line))


def test_the_first_faults_are_shown_and_the_others_counted(tmp_path):
    with pytest.raises(ValueError, match=r"line 1 .*line 2 .*line 3 .*and 2 more lines"):
        read_runs(written(tmp_path, *["{"] * 5))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it is empty"):
        read_runs(written(tmp_path, "", " "))


def test_the_same_run_twice_is_refused_by_its_lines(tmp_path):
    with pytest.raises(ValueError, match=r"seed: 1 and 3; delete one"):
        read_runs(written(tmp_path, RUN, {**RUN, "seed": 1}, {**RUN, "loss": 0.6}))


def test_one_recipe_is_chosen(tmp_path):
    runs = read_runs(written(tmp_path, RUN, {**RUN, "recipe": "dit"}))
    assert [run.line for run in runs_of_recipe(runs, "dit")] == [2]
    with pytest.raises(ValueError, match=r"2 recipes .dit, flag.; choose one with --recipe"):
        runs_of_recipe(runs, None)
    with pytest.raises(ValueError, match="must be one of dit, flag, but is 'sit'"):
        runs_of_recipe(runs, "sit")


def test_seeds_of_a_cell_are_averaged(tmp_path):
    runs = read_runs(written(tmp_path, {**RUN, "flops": 2e9}, RUN, {**RUN, "seed": 1, "loss": 0.75}))
    cells = cells_of(runs)
    np.testing.assert_array_equal(cells.flops, [1e9, 2e9])
    np.testing.assert_array_equal(cells.values, [0.625, 0.5])
    np.testing.assert_array_equal(cells.counts, [2, 1])


@pytest.mark.parametrize("value", ["x", None, True, float("nan")])
def test_a_metric_must_be_a_finite_number_in_each_run(tmp_path, value):
    runs = read_runs(written(tmp_path, {**RUN, "fid": 1.0}, {**RUN, "seed": 1, "fid": value}))
    with pytest.raises(ValueError, match="column 'fid', but line 2 has fid="):
        cells_of(runs, "fid")
    with pytest.raises(ValueError, match="line 1 lacks 'kid'"):
        cells_of(runs, "kid")
