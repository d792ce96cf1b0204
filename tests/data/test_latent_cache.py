"""The cache of latents: what is encoded when, what survives damage and kills, and what is never kept."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lumina_jax.data.example import BadSample, Record
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.fingerprints import MANY_FILES, Fingerprints
from lumina_jax.modalities import picture as pictures
from lumina_jax.modalities.decoding.media import Clip, Sound, Views
from lumina_jax.parts import CACHE_VERSION, UnwritableError
from tests.damage import flip_bit, truncate
from tests.data.cached_pictures import (
    DATA,
    PICTURES,
    SIDE,
    CountingVae,
    counted_batches,
    encode,
    part_of,
    parts,
    write_picture,
)
from tests.data.numbered import Numbered

pytestmark = pytest.mark.usefixtures("few_samples_in_a_part")


def test_a_broken_picture_stays_a_bad_sample_with_its_reason(source, vae, tmp_path):
    assert encode(source, vae, tmp_path)[4] == BadSample("4.png", "the file is not a picture, or its header is broken")


def test_the_second_call_encodes_nothing(source, vae, tmp_path):
    seen, before = [], vae.batches
    first = encode(source, vae, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert vae.batches == before + 2 + 1 + 1
    second = encode(source, vae, tmp_path, progress=lambda *_: pytest.fail("nothing is new"))
    assert vae.batches == before + 4
    np.testing.assert_array_equal(first[6].media.mean, second[6].media.mean)


def test_an_interrupted_call_goes_on_where_it_stopped(source, vae, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(source, vae, tmp_path, progress=interrupt)
    assert len(parts(tmp_path)) == 1
    seen = []
    encode(source, vae, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [6, 7]


def test_processes_begin_at_different_places_and_encode_nothing_twice(source, vae, tmp_path):
    began = []

    def second_process(done, total):
        if not began:  # while the first has one part, the other does the rest
            began.append(vae.batches)
            encode(source, vae, tmp_path, shard=(1, 2))

    before = vae.batches
    encode(source, vae, tmp_path, progress=second_process)
    assert vae.batches == before + 4


def test_a_changed_picture_alone_is_encoded_anew(source, vae, tmp_path):
    before = encode(source, vae, tmp_path)
    old = [before[index].media.mean for index in range(3)]
    write_picture(source.path.parent / "1.png", np.random.default_rng(7))
    after, batches = counted_batches(vae, lambda: encode(source, vae, tmp_path))
    assert batches == 1
    assert [np.array_equal(after[index].media.mean, mean) for index, mean in enumerate(old)] == [True, False, True]


def test_a_picture_that_changed_behind_its_size_and_time_is_noticed(source, vae, tmp_path):
    file = source.path.parent / "1.png"
    before = encode(source, vae, tmp_path)[1].media.mean
    status, pixels = file.stat(), bytearray(file.read_bytes())
    write_picture(file, np.random.default_rng(7))
    file.write_bytes(file.read_bytes()[: len(pixels)].ljust(len(pixels), b"\0"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = encode(source, vae, tmp_path)[1]
    assert isinstance(after, BadSample) or not np.array_equal(after.media.mean, before)


def test_a_line_at_the_top_another_order_and_a_copied_folder_encode_nothing_that_is_there(source, vae, tmp_path):
    encoded = encode(source, vae, tmp_path)
    first, last = encoded[0].media.mean, encoded[6].media.mean
    lines = source.path.read_text().splitlines()
    write_picture(source.path.parent / "new.png", np.random.default_rng(3))
    source.path.write_text("\n".join([json.dumps({"image": "new.png", "caption": "new"}), *lines]))
    more, batches = counted_batches(vae, lambda: encode(FolderSource(source.path), vae, tmp_path))
    assert (batches, more[0].caption) == (1, "new")
    np.testing.assert_array_equal(more[1].media.mean, first)

    source.path.write_text("\n".join(reversed(lines)))
    backwards, batches = counted_batches(vae, lambda: encode(FolderSource(source.path), vae, tmp_path))
    assert (batches, backwards[0].caption) == (0, "picture 6")
    np.testing.assert_array_equal(backwards[0].media.mean, last)

    shutil.copytree(source.path.parent, tmp_path / "copy")
    copied, batches = counted_batches(vae, lambda: encode(FolderSource(tmp_path / "copy"), vae, tmp_path))
    assert batches == 0
    np.testing.assert_array_equal(copied[6].media.mean, first)


def test_files_that_were_not_touched_are_not_read_again(source, vae, tmp_path, monkeypatch):
    encode(source, vae, tmp_path)
    opened = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: opened.append(Path(file.name).name) or digest(file, kind)
    )
    encode(source, vae, tmp_path)
    assert opened == []
    (source.path.parent / "2.png").touch()
    encode(source, vae, tmp_path)
    assert opened == ["2.png"]


def test_a_repaired_picture_is_good_again(source, vae, tmp_path):
    assert isinstance(encode(source, vae, tmp_path)[4], BadSample)
    write_picture(source.path.parent / "4.png", np.random.default_rng(5))
    assert encode(source, vae, tmp_path)[4].caption == "picture 4"


def test_one_picture_under_many_names_is_encoded_once(source, vae, tmp_path):
    for index in range(PICTURES):
        (source.path.parent / f"{index}.png").write_bytes((source.path.parent / "0.png").read_bytes())
    encoded, batches = counted_batches(vae, lambda: encode(source, vae, tmp_path))
    assert batches == 1
    assert [encoded[index].label for index in range(PICTURES)] == list(range(PICTURES))
    np.testing.assert_array_equal(encoded[6].media.mean, encoded[0].media.mean)


@pytest.mark.parametrize("damage", [truncate, flip_bit, Path.unlink])
def test_damaged_latents_are_bad_samples_and_encoded_anew_by_the_next_run(source, vae, tmp_path, damage):
    encoded = encode(source, vae, tmp_path)
    before = [encoded[index].media.mean for index in range(3)]
    damage(part_of(encoded, 0))
    bad = [encoded[index] for index in range(3) if isinstance(encoded[index], BadSample)]
    assert bad
    assert all("damaged" in sample.reason and "encodes them anew" in sample.reason for sample in bad)
    assert isinstance(encoded[5], Record)
    seen = []
    again = encode(source, vae, tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [3]
    for index, mean in enumerate(before):
        np.testing.assert_array_equal(again[index].media.mean, mean)
    assert len(parts(tmp_path)) == 3


def forbid_writing(monkeypatch, code=errno.EROFS):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    for name in ("touch", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(os, "replace", refuse)


def test_damaged_latents_in_a_folder_that_may_not_be_written_to_are_bad_samples_in_every_run(
    source, vae, tmp_path, monkeypatch
):
    encoded = encode(source, vae, tmp_path)
    flip_bit(part_of(encoded, 0))
    forbid_writing(monkeypatch)
    for run in (encoded, encode(source, vae, tmp_path)):
        bad = [run[index] for index in range(4) if isinstance(run[index], BadSample)]
        assert len(bad) == 1
        assert "damaged (a checksum in" in bad[0].reason
        assert f"delete {part_of(run, 0)}" in bad[0].reason


def test_what_is_missing_in_a_folder_that_may_not_be_written_to_is_bad_and_the_rest_is_used(
    source, vae, tmp_path, monkeypatch
):
    encoded = encode(source, vae, tmp_path)
    part_of(encoded, 0).write_bytes(b"cut")
    forbid_writing(monkeypatch)
    again, batches = counted_batches(vae, lambda: encode(source, vae, tmp_path))
    assert batches == 0
    assert "not in the cache, and" in again[0].reason
    assert "cannot be written to (Read-only file system)" in again[0].reason
    assert again[3].caption == "picture 3"


def test_an_empty_folder_that_may_not_be_written_to_is_an_error_before_anything_is_encoded(
    source, vae, tmp_path, monkeypatch
):
    forbid_writing(monkeypatch)
    before = vae.batches
    with pytest.raises(UnwritableError, match=r"cache/v2/.* cannot be written to \(Read-only file system\)"):
        encode(source, vae, tmp_path)
    assert vae.batches == before


def test_a_full_disk_is_an_error_that_names_the_folder_and_keeps_what_is_complete(source, vae, tmp_path, monkeypatch):
    with pytest.raises(
        UnwritableError, match=r"cache/v2/.*No space left on device.*files are kept, and the next run continues"
    ):
        encode(source, vae, tmp_path, progress=lambda *_: forbid_writing(monkeypatch, errno.ENOSPC))
    monkeypatch.undo()
    assert [file.suffix for file in parts(tmp_path)] == [".safetensors"]
    assert encode(source, vae, tmp_path)[6].caption == "picture 6"


class Overflowing(CountingVae):
    """Its latents of bright pictures are not finite."""

    def __init__(self, loaded, limit=20.0, value=np.nan):
        super().__init__(loaded)
        self.limit, self.value = limit, value

    def encode(self, pixels):
        mean, log_variance = (np.array(half) for half in super().encode(pixels))
        mean[(np.asarray(pixels).mean(axis=(1, 2, 3)) + 1) * 127.5 > self.limit, 0, 0, 0] = self.value
        return mean, log_variance


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_whose_latents_are_not_finite_is_a_bad_sample_and_never_kept(vae, tmp_path, value):
    overflowing, source = Overflowing(vae, limit=4.5, value=value), Numbered(6)
    encoded = encode(source, overflowing, tmp_path)
    assert [isinstance(encoded[index], BadSample) for index in range(6)] == [False] * 5 + [True]
    assert encoded[5].name == "sample 5"
    assert encoded[5].reason.startswith("the autoencoder makes values of it that are not finite; set vae.dtype=float32")
    assert np.isfinite(encoded[4].media.mean).all()
    assert encode(source, vae, tmp_path)[5].label == 5


def test_an_autoencoder_without_one_finite_latent_is_refused_at_once(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PART_SAMPLES", 40)
    broken = Overflowing(vae, limit=-1)
    with pytest.raises(ValueError, match="of the first 40 samples the autoencoder makes values"):
        encode(Numbered(100), broken, tmp_path)
    assert broken.batches == 20


def test_whatever_a_sample_raises_makes_it_bad_and_no_other(source, vae, tmp_path, monkeypatch):
    read = pictures.read_pictures

    def failing(media, *arguments):
        if Path(media).name in failures:
            raise failures[Path(media).name]
        return read(media, *arguments)

    failures = {"1.png": RecursionError("too deep"), "2.png": MemoryError(), "3.png": OverflowError("too large")}
    monkeypatch.setattr(pictures, "read_pictures", failing)
    encoded = encode(source, vae, tmp_path)
    assert [isinstance(encoded[index], BadSample) for index in range(7)] == [
        False,
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    assert encoded[1].reason == "it cannot be read (RecursionError: too deep)"
    assert encoded[2].reason.startswith("memory does not suffice to read it")


@pytest.mark.parametrize("name", ["missing.png", "n" * 300 + ".png", "a\0b.png", "folder", "pipe"])
def test_names_that_are_no_file_are_bad_samples(vae, tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    records = [Record(name, tmp_path / name, "a", 0), Numbered(2)[1]]
    encoded = encode(records, vae, tmp_path)
    assert isinstance(encoded[0], BadSample)
    assert encoded[1].label == 1


def test_two_runs_may_encode_into_one_folder_at_once(source, vae, tmp_path):
    other = []

    def second_run(done, total):
        if not other:
            other.append(None)
            other[0] = encode(source, vae, tmp_path)

    encoded = encode(source, vae, tmp_path, progress=second_run)
    for index in (0, 3, 6):
        np.testing.assert_array_equal(encoded[index].media.mean, other[0][index].media.mean)


def test_another_size_or_another_autoencoder_has_a_folder_of_its_own(source, vae, tmp_path):
    encode(source, vae, tmp_path)
    encode(source, vae, tmp_path, data=DATA.replace(image_size=SIDE // 2))
    other = CountingVae(vae)
    other.fingerprint = "another"
    encode(source, other, tmp_path)
    assert len(list((tmp_path / "cache" / CACHE_VERSION).iterdir())) == 3 + 1  # and the digests of files


def test_arrays_with_the_same_bytes_in_another_shape_or_role_are_told_apart(tmp_path):
    pixels = np.arange(24, dtype=np.uint8)
    encoded = b"".join(bytes([value]) for value in pixels)
    media = [
        pixels.reshape(2, 4, 3), pixels.reshape(4, 2, 3), pixels.reshape(1, 2, 4, 3), encoded, Clip(encoded),
        Clip(encoded, 1.0), Clip(encoded, 1.0, 2.0),
        Sound(pixels.astype(np.int16)), Sound(pixels.astype(np.int16), 8000),
        Views((Path(__file__),)), Views((Path(__file__), Path(__file__))), Path(__file__),
    ]  # fmt: skip
    fingerprints = Fingerprints(tmp_path)
    digests = [fingerprints(one) for one in media]
    assert None not in digests
    assert len(set(digests)) == len(media)
    assert [Fingerprints(tmp_path / "other")(one) for one in media] == digests


def test_remembered_digests_of_a_damaged_file_are_not_used_and_many_files_become_one(tmp_path):
    file = tmp_path / "picture"
    for content in range(MANY_FILES + 1):
        file.write_bytes(bytes([content]))
        fingerprints = Fingerprints(tmp_path / "cache")
        fingerprints(file)
        fingerprints.save()
    assert len(list((tmp_path / "cache").iterdir())) == MANY_FILES + 1
    right = Fingerprints(tmp_path / "cache")(file)
    [joined] = (tmp_path / "cache").iterdir()
    data = bytearray(joined.read_bytes())
    data[-1] ^= 1
    joined.write_bytes(data)
    assert Fingerprints(tmp_path / "cache")(file) == right
