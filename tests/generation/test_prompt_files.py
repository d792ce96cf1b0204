"""Files of prompts: one caption a line, whatever editor wrote them."""

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumina_jax.prompts import read_prompts

CAPTIONS = ["red heart", "日本の猫", "one\u2028caption\x0bof\x85one line"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_encoding_and_end_of_line_gives_the_same_captions(tmp_path, encoding, end):
    file = tmp_path / "prompts.txt"
    file.write_bytes(end.join(["", *CAPTIONS, "  ", ""]).encode(encoding))
    assert read_prompts(file) == CAPTIONS


def test_a_big_endian_file_is_read_by_its_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xfe\xff" + "cat\ndog".encode("utf-16-be"))
    assert read_prompts(tmp_path / "a.txt") == ["cat", "dog"]


def test_standard_input_and_pipes_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("cat\nédition".encode())))
    assert read_prompts(Path("-")) == ["cat", "édition"]
    assert read_prompts(Path("/dev/null")) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("cat\ncafé".encode("latin-1"), "must be UTF-8, but line 2 of"),
        ("cat".encode("utf-16-le"), "zero bytes; save the file as UTF-8"),
    ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path, content, reason):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_prompts(tmp_path / "a.txt")


def test_folders_and_missing_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(ValueError, match="there is no file of prompts"):
            read_prompts(path)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])), max_size=5))
def test_every_caption_of_one_line_comes_back(tmp_path_factory, captions):
    file = tmp_path_factory.getbasetemp() / "prompts.txt"
    file.write_bytes("\n".join(captions).encode())
    expected = [caption.removeprefix("\ufeff") if index == 0 else caption for index, caption in enumerate(captions)]
    assert read_prompts(file) == [caption.strip() for caption in expected if caption.strip()]
