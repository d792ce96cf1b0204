"""The cache of captions: what is encoded when, what survives a kill, and what the features are."""

import errno
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lumina_jax import parts
from lumina_jax.encoders import caption_cache
from lumina_jax.encoders.caption_cache import CHUNK, encode_captions
from lumina_jax.encoders.text import text_encoder
from lumina_jax.parts import UnwritableError
from tests.damage import empty, flip_bit, truncate

GOLDEN = Path(__file__).parent.parent / "golden" / "bert_tiny"
ROOT = Path(__file__).parents[2]
CAPTIONS = ["red heart, noto style", "", "an unknown zebra", "blue circle"]


class Letters:
    """An encoder that remembers what it has encoded; a caption has a token for each letter, and "bad" makes NaN."""

    def __init__(self, fingerprint="letters", bad=()):
        self.fingerprint, self.width, self.max_tokens = fingerprint, 3, 12
        self.encoded, self.bad = [], bad

    def encode(self, captions):
        self.encoded += captions
        lengths = np.array([1 + len(caption) for caption in captions])
        is_token = np.arange(self.max_tokens) < lengths[:, None]
        features = np.broadcast_to(lengths[:, None, None], (*is_token.shape, 3)) * is_token[:, :, None] * 1.0
        features[[caption in self.bad for caption in captions], 0, 1] = np.nan
        return features, is_token.astype(np.int32)


@pytest.fixture
def small_parts(monkeypatch):
    """Two captions a chunk, four a part."""
    monkeypatch.setattr(caption_cache, "CHUNK", 2)
    monkeypatch.setattr(caption_cache, "PART_CAPTIONS", 4)


@pytest.fixture(scope="module")
def encoder():
    return text_encoder(GOLDEN, 10)


def files(folder):
    """Parts and what else is in the only folder of the cache."""
    [entry] = (folder / parts.CACHE_VERSION).iterdir()
    return sorted(entry.iterdir())


def numbered(count):
    return [f"number {number}" for number in range(count)]


def test_cached_features_are_those_of_the_encoder_without_padding(encoder, tmp_path):
    captions = [*CAPTIONS, *(f"red {'s' * n}" for n in range(CHUNK + 5))]
    seen = []
    cached = encode_captions(captions, encoder, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert len(cached) == len(set(captions)) == CHUNK + 9
    assert seen == [(CHUNK + 9, CHUNK + 9)]
    direct = encoder.encode(captions)
    for caption, features, segment_ids in zip(captions, *direct):
        np.testing.assert_allclose(cached[caption], features[segment_ids > 0], atol=1e-6)
    assert cached[""].shape == (2, 24)


def test_captions_that_are_there_are_not_encoded_again(tmp_path):
    encoder = Letters()
    first = encode_captions(CAPTIONS, encoder, tmp_path)
    second = encode_captions([*reversed(CAPTIONS), ""], encoder, tmp_path)
    assert len(encoder.encoded) == len(CAPTIONS)
    np.testing.assert_array_equal(first["blue circle"], second["blue circle"])


def test_of_a_set_with_one_changed_caption_that_alone_is_encoded(tmp_path, small_parts):
    encode_captions([*numbered(9), ""], Letters(), tmp_path)
    encoder = Letters()
    cached = encode_captions(["", "changed", *numbered(8)], encoder, tmp_path)
    assert encoder.encoded == ["changed"]
    assert cached["changed"].tolist() == [[8.0] * 3] * 8
    assert cached["number 3"].tolist() == [[9.0] * 3] * 9


def test_an_interrupted_call_goes_on_after_the_last_complete_part(tmp_path, small_parts):
    def interrupt(done, total):
        if done == 8:
            raise KeyboardInterrupt

    encoder = Letters()
    with pytest.raises(KeyboardInterrupt):
        encode_captions(numbered(14), encoder, tmp_path, progress=interrupt)
    seen = []
    cached = encode_captions(numbered(14), encoder, tmp_path, progress=lambda *counts: seen.append(counts))
    assert sorted(encoder.encoded) == sorted(numbered(14))
    assert seen == [(4, 6), (6, 6)]
    assert all(len(cached[caption]) == 1 + len(caption) for caption in numbered(14))


SLOW_ENCODING = """
import sys, time
from lumina_jax.encoders import caption_cache
from tests.encoders.test_caption_cache import Letters, numbered

class Slow(Letters):
    def encode(self, captions):
        print(len(captions), flush=True)
        time.sleep(0.05)
        return super().encode(captions)

caption_cache.CHUNK, caption_cache.PART_CAPTIONS = 2, 4
caption_cache.encode_captions(numbered(1000), Slow(), sys.argv[1])
"""


def test_a_killed_process_loses_at_most_a_part_and_leaves_nothing_that_stays(tmp_path, small_parts):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_ENCODING, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(11):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    leftover = files(tmp_path)[0].parent / f"{parts._partial_name('leftover')}"
    leftover.write_bytes(b"cut off")
    encoder = Letters()
    encode_captions(numbered(1000), encoder, tmp_path)
    assert 1000 - len(encoder.encoded) >= 2 * 10 - 4
    assert {file.suffix for file in files(tmp_path)} == {".safetensors"}


def test_a_slow_encoder_writes_a_part_now_and_then(tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(caption_cache, "PART_SECONDS", -1.0)
    seen = []
    encode_captions(numbered(6), Letters(), tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [2, 4, 6]


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty, Path.unlink])
def test_of_a_damaged_part_what_it_held_is_encoded_anew(tmp_path, damage, small_parts):
    before = encode_captions(numbered(10), Letters(), tmp_path)
    expected = {caption: np.array(before[caption]) for caption in numbered(10)}
    damage(files(tmp_path)[0])
    encoder = Letters()
    after = encode_captions(numbered(10), encoder, tmp_path)
    assert len(encoder.encoded) in (2, 4)
    assert len(after) == 10
    assert all(np.array_equal(after[caption], features) for caption, features in expected.items())


def test_a_damaged_part_of_a_folder_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path, monkeypatch):
    encode_captions(CAPTIONS, Letters(), tmp_path)
    flip_bit(files(tmp_path)[0])

    def forbidden(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", forbidden)
    with pytest.raises(UnwritableError, match=r"is damaged, and .*v2/letters cannot be written to \(Read-only"):
        encode_captions(CAPTIONS, Letters(), tmp_path)


def test_a_folder_that_holds_all_captions_need_not_be_writable(tmp_path, monkeypatch):
    encode_captions(CAPTIONS, Letters(), tmp_path)
    monkeypatch.setattr(caption_cache, "write_file", lambda *_: pytest.fail("written to"))
    assert len(encode_captions(CAPTIONS, Letters(), tmp_path)) == 4


def test_two_runs_may_encode_one_set_into_one_folder_at_once(tmp_path, small_parts):
    def second_run(done, total):
        if done == 4:
            encode_captions(numbered(9), Letters(), tmp_path)

    cached = encode_captions(numbered(9), Letters(), tmp_path, progress=second_run)
    assert all(len(cached[caption]) == 1 + len(caption) for caption in numbered(9))
    assert encode_captions(numbered(9), Letters(), tmp_path)["number 8"].shape == (9, 3)


def test_captions_whose_features_are_not_finite_are_named_and_never_kept(tmp_path, caplog, small_parts):
    cached = encode_captions(["good", "", "evil", "fine"], Letters(bad=["evil"]), tmp_path)
    assert "1 captions have no features, and their samples are skipped, such as 'evil': the text enc" in caplog.text
    assert "returned values that are not finite; set text.dtype=float32" in caplog.text
    assert "evil" not in cached
    with pytest.raises(KeyError, match=r"'evil' was not encoded.*the text encoder failed on it"):
        cached["evil"]
    assert cached["fine"].shape == (5, 3)
    again = Letters()
    assert encode_captions(["good", "", "evil", "fine"], again, tmp_path)["evil"].shape == (5, 3)
    assert again.encoded == ["evil"]


def test_an_encoder_whose_features_are_never_finite_is_refused_after_the_first_chunk(tmp_path, small_parts):
    encoder = Letters(bad=numbered(9))
    with pytest.raises(ValueError, match=r"2 captions have no features, .* not finite"):
        encode_captions(numbered(9), encoder, tmp_path)
    assert len(encoder.encoded) == 2


def test_a_caption_that_the_tokenizer_cannot_cut_is_left_out_alone(tmp_path, encoder, caplog):
    captions = [*CAPTIONS, "half an emoji \ud83d"]
    cached = encode_captions(captions, encoder, tmp_path)
    assert len(cached) == len(CAPTIONS)
    np.testing.assert_allclose(cached["blue circle"], encoder.encode(["blue circle"]).features[0, :4], atol=1e-6)
    assert r"such as 'half an emoji \ud83d': the tokenizer in" in caplog.text


def test_the_empty_caption_must_have_finite_features(tmp_path):
    with pytest.raises(ValueError, match=r"1 captions have no features, .* such as ''"):
        encode_captions(["", "red", "blue"], Letters(bad=[""]), tmp_path)


def test_parts_of_different_encoders_lie_in_different_folders(tmp_path):
    encode_captions(CAPTIONS, Letters("one"), tmp_path)
    encoder = Letters("other")
    encode_captions(CAPTIONS, encoder, tmp_path)
    assert len(encoder.encoded) == len(CAPTIONS)
    assert sorted(folder.name for folder in (tmp_path / parts.CACHE_VERSION).iterdir()) == ["one", "other"]


def test_captions_that_no_utf8_holds_have_features_too(tmp_path):
    cached = encode_captions(["cat \ud83d", "cat \ud83e"], Letters(), tmp_path)
    assert len(cached) == 2
    assert cached["cat \ud83d"].shape == (6, 3)


def test_an_unknown_caption_is_named_with_the_remedy(tmp_path):
    cached = encode_captions(CAPTIONS, Letters(), tmp_path)
    assert "green heart" not in cached
    with pytest.raises(KeyError, match=r"'green heart' was not encoded: either it was not passed to encode_captions"):
        cached["green heart"]


def test_an_empty_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no captions"):
        encode_captions([], Letters(), tmp_path)


def test_pickled_features_share_the_files_and_are_small(tmp_path, small_parts):
    cached = encode_captions([*numbered(9), ""], Letters(), tmp_path)
    pickled = pickle.dumps(cached)
    assert len(pickled) < 400
    copy = pickle.loads(pickled)
    assert repr(copy) == repr(cached)
    np.testing.assert_array_equal(copy["number 7"], cached["number 7"])


def test_features_are_read_only_views_of_the_file(tmp_path):
    features = encode_captions(CAPTIONS, Letters(), tmp_path)["blue circle"]
    assert not features.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        features[0] = 0


def test_few_parts_are_open_at_once(tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(caption_cache, "MAX_OPEN_PARTS", 2)
    cached = encode_captions(numbered(20), Letters(), tmp_path)
    for caption in numbered(20) * 2:
        assert cached[caption].shape == (1 + len(caption), 3)
        assert len(cached._mapped) <= 2


def test_progress_is_shown_while_captions_are_encoded(tmp_path, small_parts, monkeypatch, capsys):
    monkeypatch.setattr("lumina_jax.progress.SECONDS_BETWEEN_LINES", 0.0)
    encode_captions(numbered(6), Letters(), tmp_path)
    assert "encoding captions: 4 of 6" in capsys.readouterr().err


def test_features_that_were_deleted_during_a_run_are_missing_by_name(tmp_path, small_parts):
    cached = encode_captions(numbered(9), Letters(), tmp_path)
    for file in files(tmp_path):
        file.unlink()
    with pytest.raises(KeyError, match="the features of 'number 3' are no longer readable"):
        cached["number 3"]


@pytest.mark.slow
def test_processes_that_encode_at_once_and_are_killed_leave_features_that_are_right(tmp_path, small_parts):
    random = np.random.default_rng(0)
    for _ in range(4):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SLOW_ENCODING, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE, text=True,
            )
            for _ in range(3)
        ]  # fmt: skip
        for process in processes:
            for _ in range(int(random.integers(1, 30))):
                process.stdout.readline()
            process.kill()
            process.wait()
    encoder = Letters()
    cached = encode_captions(numbered(1000), encoder, tmp_path)
    assert len(encoder.encoded) < 1000
    for caption in numbered(1000):
        expected = min(1 + len(caption), encoder.max_tokens)
        np.testing.assert_array_equal(cached[caption], np.full((expected, 3), 1 + len(caption), np.float32))
    assert {file.suffix for file in files(tmp_path)} == {".safetensors"}
