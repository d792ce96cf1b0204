"""Files of scenes: what is written, and what is never overwritten."""

import json

import pytest

from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.scenes import write_scenes


@pytest.fixture
def captions(tmp_path):
    """Of a picture only, which has no cuts and needs no decoder."""
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"image": "a.png", "caption": "猫", "note": "\ud83d"}) + "\n{")
    return path


def test_scenes_are_what_their_folder_is_read_from(captions):
    report = write_scenes(captions, captions.with_name("scenes.jsonl"), least=1.0)
    source = FolderSource(captions.parent)
    assert source.path.name == "scenes.jsonl"
    assert [record.caption for record in (source[0],)] == ["猫"]
    assert len(source) == 1
    assert list(report.bad) == ["captions.jsonl, line 2"]


@pytest.mark.parametrize("name", ["captions.jsonl", "scenes.jsonl"])
def test_a_file_that_is_there_is_not_overwritten(captions, name):
    out = captions.with_name(name)
    out.touch()
    before = out.read_bytes()
    with pytest.raises(ValueError, match="is there already"):
        write_scenes(captions, out, least=1.0)
    assert out.read_bytes() == before


def test_no_file_is_left_where_there_is_no_scene(captions):
    captions.write_text('{"video": "gone.mp4"}')
    with pytest.raises(ValueError, match=r"no line of .* gives a scene; the last: .*there is no file"):
        write_scenes(captions, captions.with_name("scenes.jsonl"), least=1.0)
    with pytest.raises(ValueError, match="must end in"):
        write_scenes(captions, captions.with_name("scenes.txt"), least=1.0)
    assert [file.name for file in captions.parent.iterdir()] == ["captions.jsonl"]
