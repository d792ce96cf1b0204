"""Features of folders of pictures: batches, devices, unreadable files, and a cache that is never stale."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_jax.evaluation.features import feature_network, features, resized_as_tensorflow
from lumina_jax.evaluation.set_comparison import compare_sets
from lumina_jax.generation.gallery import Gallery
from lumina_jax.modalities.files.movies import FrameFiles
from lumina_jax.picture_sets import folder_features, picture_files, read_features, write_features
from tests.evaluation.picture_folders import WIDTH, expected_features, save_pictures, tiny_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network():
    return tiny_network()


def test_features_do_not_depend_on_the_size_of_a_batch(tmp_path, network):
    files = picture_files(save_pictures(tmp_path, 9))
    prepared = [network.prepare(Image.open(file)) for file in files]
    expected = expected_features(network, files)
    assert np.ptp(expected, axis=0).min() > 0.01
    for batch in (1, 4, 9, 64):
        np.testing.assert_allclose(features(network, prepared, batch=batch), expected, atol=1e-6)
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        features(network, prepared, batch=0)
    with pytest.raises(ValueError, match="need at least one picture"):
        features(network, [])


def test_a_folder_is_read_with_its_subfolders_in_the_order_of_names(tmp_path, network):
    save_pictures(tmp_path / "b", 3, seed=1)
    save_pictures(tmp_path / "a", 2, seed=2)
    save_pictures(tmp_path / ".hidden", 2)
    (tmp_path / "captions.jsonl").write_text("{}")
    Image.open(tmp_path / "a" / "p00.png").save(tmp_path / "c.JPEG", quality=95)
    files = picture_files(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "a/p00.png", "a/p01.png", "b/p00.png", "b/p01.png", "b/p02.png", "c.JPEG"
    ]  # fmt: skip
    found = folder_features(network, tmp_path, batch=4)
    np.testing.assert_allclose(found.features, expected_features(network, files), atol=1e-6)


def test_pictures_of_any_mode_are_laid_on_white_and_turned_upright(tmp_path, network):
    white = Image.new("RGB", (9, 9), "white")
    white.save(tmp_path / "a.png")
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "b.png")
    Image.fromarray(np.full((5, 5), 65535, np.uint16)).save(tmp_path / "c.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "d.gif", transparency=0)
    found = folder_features(network, tmp_path).features
    np.testing.assert_allclose(found, np.repeat(found[:1], 4, axis=0), atol=1e-6)


def test_pictures_that_cannot_be_read_are_left_out_and_named(tmp_path, network):
    save_pictures(tmp_path, 3)
    (tmp_path / "p01.png").write_bytes((tmp_path / "p01.png").read_bytes()[:60])
    (tmp_path / "p015.png").write_text("hello")
    found = folder_features(network, tmp_path, cache=tmp_path / "cache")
    kept = [tmp_path / "p00.png", tmp_path / "p02.png"]
    assert found.features.shape == (2, WIDTH)
    np.testing.assert_allclose(found.features, expected_features(network, kept), atol=1e-6)
    assert sorted(found.left_out) == [str(tmp_path / "p01.png"), str(tmp_path / "p015.png")]
    assert "not a picture" in found.left_out[str(tmp_path / "p015.png")]
    assert not (tmp_path / "cache").exists()  # another machine may be able to read them
    for file in kept:
        file.write_text("hello")
    with pytest.raises(ValueError, match=r"no picture in .* can be read; .*p00\.png: the file is not a picture"):
        folder_features(network, tmp_path)


def test_folders_without_pictures_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must hold pictures, but has none; their names end in \.png"):
        picture_files(tmp_path)
    with pytest.raises(ValueError, match="must be a folder of pictures, but is missing"):
        picture_files(tmp_path / "none")
    with pytest.raises(ValueError, match="but is a file"):
        picture_files(tmp_path / "notes.txt")


def test_contact_sheets_of_samples_are_no_pictures_of_the_set(tmp_path):
    gallery = Gallery(tmp_path, ["cat", "dog"], {}, FrameFiles(8.0))
    for index in (0, 1):
        gallery.add(index, np.full((1, 8, 8, 3), 50 * index, np.uint8))
    gallery.sheet()
    Image.new("RGB", (9, 9)).save(tmp_path / "sheet-of-paper.png")
    assert (tmp_path / "sheet.png").exists()
    assert [file.name for file in picture_files(tmp_path)] == ["000-cat.png", "001-dog.png", "sheet-of-paper.png"]


def test_kept_features_are_used_until_a_picture_or_the_network_changes(tmp_path, network):
    folder, cache = save_pictures(tmp_path / "real", 4), tmp_path / "cache"

    def found(network=network):
        return folder_features(network, folder, cache=cache)

    first = found()
    again = found()
    assert not first.is_from_cache
    assert again.is_from_cache
    np.testing.assert_array_equal(again.features, first.features)
    assert not found(tiny_network("other weights")).is_from_cache
    before = (folder / "p02.png").stat()
    Image.open(folder / "p00.png").save(folder / "p02.png")
    os.utime(folder / "p02.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # a change that its time does not show
    changed = found()
    assert not changed.is_from_cache
    np.testing.assert_allclose(changed.features[2], first.features[0], atol=1e-6)
    (folder / "p03.png").unlink()
    assert len(found().features) == 3
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:200])
    assert not found().is_from_cache
    assert found().is_from_cache  # the damaged entry was replaced


def test_a_cache_that_cannot_be_written_costs_no_features(tmp_path, network):
    (tmp_path / "cache").write_text("a file")
    found = folder_features(network, save_pictures(tmp_path / "real", 2), cache=tmp_path / "cache" / "inner")
    assert len(found.features) == 2
    assert "cannot be written to" in found.not_kept


def test_features_in_a_file_are_found_by_name_or_because_there_is_one_array(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_features(tmp_path / "new" / "x.npz", x)
    np.testing.assert_array_equal(read_features(tmp_path / "new" / "x.npz"), x)
    np.savez(tmp_path / "one.npz", whatever=x.astype(np.float16))
    assert read_features(tmp_path / "one.npz").dtype == np.float64
    np.savez(tmp_path / "two.npz", features=x, names=np.array(["a"]))
    np.testing.assert_array_equal(read_features(tmp_path / "two.npz"), x)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(read_features(tmp_path / "x.npy"), x)


def test_files_without_features_are_refused(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    np.savez(tmp_path / "flat.npz", np.ones(3))
    np.savez(tmp_path / "words.npz", np.array([["a"]]))
    np.savez(tmp_path / "object.npz", np.array([{}], object))
    (tmp_path / "text.npz").write_text("hello")
    for name, message in (
        ("two.npz", "must have an array 'features' or only one array, but has a, b"),
        ("flat.npz", r"must be numbers \[samples width\], but those of .* are float64 \[3\]"),
        ("words.npz", r"must be numbers"),
        ("object.npz", "cannot be read as .npz"),
        ("text.npz", "cannot be read as .npz"),
        ("none.npz", "missing"),
    ):
        with pytest.raises(ValueError, match=message):
            read_features(tmp_path / name)


def test_networks_that_need_weights_say_which():
    with pytest.raises(ValueError, match=r"inception needs weights, .*pt_inception-2015-12-05-6726825d"):
        feature_network("inception")
    with pytest.raises(ValueError, match=r"clip needs weights, .*the folder of a whole CLIP"):
        feature_network("clip")


@pytest.mark.parametrize("size", [(299, 299), (150, 400), (700, 33), (1, 1)])
def test_the_resize_of_tensorflow_samples_pixels_at_multiples_of_the_scale(size):
    """By its definition, one output pixel at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = resized_as_tensorflow(Image.fromarray(pixels))
    assert found.shape == (299, 299, 3)
    for row, column in np.random.default_rng(1).integers(0, 299, (50, 2)):
        y, x = row * size[0] / 299, column * size[1] / 299
        total = 0.0
        for i, wi in ((int(y), 1 - y % 1), (int(y) + 1, y % 1)):
            for j, wj in ((int(x), 1 - x % 1), (int(x) + 1, x % 1)):
                total = total + wi * wj * pixels[min(i, size[0] - 1), min(j, size[1] - 1)].astype(float)
        np.testing.assert_allclose(found[row, column], total, atol=0.05)


@pytest.mark.slow
def test_features_on_four_devices_equal_those_on_one(tmp_path):
    save_pictures(tmp_path / "pictures", 10)
    code = (
        "import jax, sys, numpy as np; from pathlib import Path; from lumina_jax.picture_sets import folder_features; "
        "from tests.evaluation.picture_folders import tiny_network; print(jax.local_device_count()); "
        "np.save(sys.argv[2], folder_features(tiny_network(), Path(sys.argv[1]), batch=6).features)"
    )
    found = []
    for devices in (1, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "pictures"), str(tmp_path / "x.npy")],
            cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [str(devices)]
        found.append(np.load(tmp_path / "x.npy"))
    assert found[0].shape == (10, WIDTH)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


@pytest.mark.slow
def test_efficientnet_finds_near_duplicates_nearer_than_another_style():
    """On emoji; and its features are the same for a batch of 1 and of 64."""
    network = feature_network("efficientnet")
    styles = {
        name: np.load(ROOT / f"lumina_jax/data/emoji/emoji_{name}_32.npz")["X"][:96] for name in ("noto", "fluent")
    }
    noise = np.random.default_rng(0).normal(0, 2, styles["noto"].shape)
    sets = {**styles, "near": (styles["noto"] + noise).clip(0, 255).astype(np.uint8)}
    found = {
        name: features(network, [network.prepare(Image.fromarray(pixels)) for pixels in pictures])
        for name, pictures in sets.items()
    }
    alone = features(network, [network.prepare(Image.fromarray(pixels)) for pixels in sets["noto"][:5]], batch=1)
    np.testing.assert_allclose(found["noto"][:5], alone, atol=1e-5)
    near, far = (compare_sets(found["noto"], found[name]) for name in ("near", "fluent"))
    assert near.frechet < far.frechet / 2
    assert near.kernel < far.kernel / 2
    assert near.cover.coverage > far.cover.coverage
