"""lumina evaluate-images: two folders or two files of features to numbers, and what it refuses."""

import json

import numpy as np
import pytest

from lumina_jax.commands import evaluate_images as command
from lumina_jax.evaluation import features as features_module
from lumina_jax.evaluation.set_comparison import compare_sets
from lumina_jax.picture_sets import picture_files, read_features
from tests.evaluation.picture_folders import expected_features, save_pictures, tiny_network

KEYS = {"frechet", "kernel", "precision", "recall", "density", "coverage"}


@pytest.fixture(autouse=True)
def _same_process(monkeypatch):
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")  # else the command starts Python again


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command with the tiny network and a cache of the test; returns the JSON."""
    monkeypatch.setattr(features_module, "feature_network", lambda name, weights: tiny_network())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

    def run(*words):
        file = tmp_path / "out" / "numbers.json"
        assert command.main([str(word) for word in (*words, "--json", file)]) == 0
        return json.loads(file.read_text())

    return run


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        command.main([str(word) for word in words])
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_two_folders_are_compared_with_the_first_as_the_real_one(tmp_path, run, capsys):
    real, drawn = save_pictures(tmp_path / "real", 12), save_pictures(tmp_path / "drawn", 9, seed=1, level=140)
    found = run(real, drawn)
    network = tiny_network()
    expected = compare_sets(*(expected_features(network, picture_files(folder)) for folder in (real, drawn)))
    assert found.keys() >= KEYS
    for name in KEYS:
        assert found[name] == pytest.approx(expected.as_json()[name], rel=1e-3, abs=1e-6)
    assert (found["real"], found["drawn"], found["network"], found["left_out"]) == (12, 9, "tiny", [])
    assert f"real: 12 pictures of {real}\n" in capsys.readouterr().out
    exchanged = run(drawn, real)
    assert exchanged["precision"] == found["recall"] != found["precision"]


def test_a_folder_compared_with_itself_is_at_distance_zero_and_read_from_the_cache(tmp_path, run, capsys):
    real = save_pictures(tmp_path / "real", 8)
    found = run(real, real)
    assert found["frechet"] == pytest.approx(0, abs=1e-9)
    assert (found["kernel"], found["precision"], found["recall"], found["coverage"]) == (0, 1, 1, 1)
    capsys.readouterr()
    assert run(real, real) == found
    assert f"real: 8 pictures of {real}, from the cache" in capsys.readouterr().out
    assert len([*(tmp_path / "caches" / "lumina_jax" / "picture-features").iterdir()]) == 1
    run(real, real, "--no-cache")
    assert "from the cache" not in capsys.readouterr().out


def test_files_that_are_left_out_are_named(tmp_path, run, capsys):
    real, drawn = save_pictures(tmp_path / "real", 7), save_pictures(tmp_path / "drawn", 7, seed=3)
    (drawn / "p03.png").write_text("hello")
    found = run(real, drawn)
    assert found["left_out"] == [str(drawn / "p03.png")]
    assert f"warning: {drawn / 'p03.png'} is left out: the file is not a picture" in capsys.readouterr().err


def test_saved_features_give_the_same_numbers_again(tmp_path, run):
    real, drawn = save_pictures(tmp_path / "real", 8), save_pictures(tmp_path / "drawn", 8, seed=3)
    files = tmp_path / "real.npz", tmp_path / "drawn.npz"
    found = run(real, drawn, "--save-real-features", files[0], "--save-features", files[1])
    assert read_features(files[1]).shape == (8, 5)
    again = run("--features", *files)
    assert {name: again[name] for name in KEYS} == {name: found[name] for name in KEYS}


def test_arrays_of_features_are_compared_without_a_network(tmp_path, capsys):
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(30, 4)), draws.normal(size=(20, 4)) + 0.5
    np.savez(tmp_path / "x.npz", X=x)
    np.savez(tmp_path / "y.npz", features=y, other=x)
    assert command.main(["--features", f"{tmp_path / 'x.npz'}", f"{tmp_path / 'y.npz'}"]) == 0
    said = capsys.readouterr().out
    assert "30 real and 20 drawn, 4 features each" in said
    assert f"Frechet distance {compare_sets(x, y).frechet:.6g}" in said


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    real = save_pictures(tmp_path / "real", 2)
    np.savez(tmp_path / "x.npz", X=np.ones((3, 2)))
    file = tmp_path / "x.npz"
    assert "but 1 are named; write lumina evaluate-images REAL DRAWN" in refused(capsys, real)
    assert "leave out the folders" in refused(capsys, real, real, "--features", file, file)
    assert "must be a folder of pictures, but is missing" in refused(capsys, real, tmp_path / "none")
    assert "to compare features write --features REAL.npz DRAWN.npz" in refused(capsys, file, file)
    assert "network inception needs weights" in refused(capsys, real, real, "--network", "inception")
    one = save_pictures(tmp_path / "one", 1)
    assert "must hold at least 2 pictures, but has one" in refused(capsys, real, one)
    assert "cannot be written to" in refused(capsys, real, real, "--json", file / "inner" / "scores.json")
    assert "batch=0 must be at least 1" in refused(capsys, real, real, "--batch", 0)
