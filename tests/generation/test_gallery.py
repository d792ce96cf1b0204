"""Samples on disk: written as they come, under names that can be read, and nothing is overwritten."""

import os
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lumina_jax.generation import gallery as module
from lumina_jax.generation.gallery import Gallery, sample_name, save_as_drawn, writable
from lumina_jax.generation.not_drawn import NotDrawn
from lumina_jax.modalities.files.movies import FrameFiles
from lumina_jax.modalities.files.png import read_png_metadata


def picture(seed, side=8):
    return np.random.default_rng(seed).integers(0, 255, (1, side, side, 3), np.uint8)


def new_gallery(folder, prompts=("cat", "dog"), **settings):
    return Gallery(folder, prompts, settings, FrameFiles(8.0))


def names(folder):
    return sorted(file.name for file in folder.iterdir())


# names


def test_letters_of_any_script_stay_in_a_name():
    assert sample_name(3, "Red heart, noto style!", 10) == "003-red-heart-noto-style.png"
    assert sample_name(0, "日本の猫", 1) == "000-日本の猫.png"
    assert sample_name(0, "हिन्दी में", 1) == "000-हिन्दी-में.png"
    assert sample_name(0, "..//🎈", 1) == "000.png"
    assert sample_name(0, "cafe\u0301", 1) == "000-café.png"


def test_names_of_many_samples_sort_by_index():
    found = [sample_name(index, "x", 12_000) for index in (2, 999, 1000, 11_999)]
    assert found == sorted(found)
    assert found[0] == "00002-x.png"


@given(st.text(max_size=400), st.integers(0, 10**6))
@example("\U0001d54a" * 60, 10**6)  # letters of four bytes
def test_every_prompt_has_a_name_that_file_systems_take(prompt, index):
    name = sample_name(index, prompt, index + 1)
    assert len(name.encode()) <= 143 - len("-12345") - len("..1234567.tmp")
    assert re.fullmatch(r"\d{3,7}(-[^/\\\s\x00]+)?\.png", name)
    assert not set(name) & set('<>:"|?*')


# what is there stays


def test_other_settings_get_other_names_and_the_same_ones_change_nothing(tmp_path):
    for guidance, seed in ((1.0, 0), (4.0, 1), (1.0, 0)):
        gallery = new_gallery(tmp_path, guidance=guidance)
        gallery.add(0, picture(seed))
        gallery.sheet()
    assert names(tmp_path) == ["000-cat-2.png", "000-cat.png", "sheet-2.png", "sheet.png"]
    assert read_png_metadata(tmp_path / "000-cat.png")["guidance"] == 1.0
    assert read_png_metadata(tmp_path / "000-cat-2.png")["guidance"] == 4.0


def test_the_same_holds_on_file_systems_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    test_other_settings_get_other_names_and_the_same_ones_change_nothing(tmp_path)


def test_a_file_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "000-cat.png").write_bytes(b"mine")
    assert new_gallery(tmp_path).add(0, picture(0)).name == "000-cat-2.png"
    assert (tmp_path / "000-cat.png").read_bytes() == b"mine"


# as drawn


def test_samples_are_on_disk_as_soon_as_they_come_and_ctrl_c_leaves_them_and_their_sheet(tmp_path):
    def drawn():
        yield 1, picture(1)
        assert names(tmp_path) == ["001-dog.png"]
        yield 0, picture(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_as_drawn(new_gallery(tmp_path, ["cat", "dog", "sea"]), drawn(), ["cat", "dog", "sea"])
    assert names(tmp_path) == ["000-cat.png", "001-dog.png", "sheet.png"]
    assert read_png_metadata(tmp_path / "sheet.png")["prompts"] == ["cat", "dog"]


def test_a_sample_that_is_not_finite_is_named_and_the_others_are_saved(tmp_path, capsys):
    drawn = iter([(0, NotDrawn("its values are not finite")), (1, picture(1))])
    assert save_as_drawn(new_gallery(tmp_path), drawn, ["cat", "dog"]) == 1
    assert "no sample of 'cat': its values are not finite" in capsys.readouterr().err
    assert names(tmp_path) == ["001-dog.png"]


def test_a_full_disk_is_named_with_what_is_saved(tmp_path, monkeypatch):
    gallery = new_gallery(tmp_path)
    gallery.add(0, picture(0))
    monkeypatch.setattr(module, "save_png", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match=rf"sample 1 cannot be written to {tmp_path} \(No space left on device\)"):
        gallery.add(1, picture(1))


def test_a_folder_that_cannot_be_written_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written to .*; name another folder with --out"):
        writable(tmp_path / "file" / "inside")
    with pytest.raises(ValueError, match="is a URL"):
        writable(module.Path("gs://bucket/samples"))
    assert writable(tmp_path / "new" / "folder").is_dir()


def test_a_sheet_of_many_large_pictures_is_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHEET_PIXELS", 4 * 64**2)
    gallery = new_gallery(tmp_path, ["x"] * 4)
    for index in range(4):
        gallery.add(index, picture(index, side=256))
    sheet = np.asarray(module.Image.open(gallery.sheet()))
    assert sheet.shape[0] < 700
    assert np.asarray(module.Image.open(tmp_path / "000-x.png")).shape == (256, 256, 3)
