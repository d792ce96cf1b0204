"""Files of a cache: whole or not there, what killed processes leave, and tables of digests."""

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumina_jax import parts
from lumina_jax.parts import (
    DigestIndex,
    UnwritableError,
    check_writable,
    digest,
    digest_array,
    prepare_folder,
    write_file,
)

WRITING = """
import sys, time
from pathlib import Path
from lumina_jax import parts

def endless():
    while True:
        yield b"more"
        print("writes", flush=True)
        time.sleep(0.01)

parts.write_file(Path(sys.argv[1]), "a", endless())
"""


def writing(folder):
    """A process in the middle of writing a file."""
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(folder)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_file_is_there_when_it_is_complete_and_replaces_an_older_one(tmp_path):
    def pieces():
        yield b"one "
        assert not (tmp_path / "a").exists()
        yield b"two"

    write_file(tmp_path, "a", pieces())
    assert (tmp_path / "a").read_bytes() == b"one two"
    write_file(tmp_path, "a", b"three")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"three")]


def test_what_raises_while_it_is_written_leaves_nothing(tmp_path):
    def pieces():
        yield b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path, "a", pieces())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message_that_names_the_folder_and_what_is_kept(tmp_path):
    def pieces():
        yield b"one"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UnwritableError) as caught:
        write_file(tmp_path, "a", pieces())
    assert str(caught.value).startswith(f"{tmp_path} cannot be written to (No space left on device); complete files ")
    assert not caught.value.is_forbidden
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_is_found_full_when_the_file_is_closed_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_locked", lambda path: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(UnwritableError, match="No space left"):
        write_file(tmp_path, "a", b"one")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_or_a_file_cannot_be_written_to(tmp_path):
    with pytest.raises(UnwritableError, match=r"missing cannot be written to \(No such file"):
        check_writable(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="cannot be written to"):
        prepare_folder(tmp_path / "file" / "within")
    check_writable(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    process = writing(tmp_path)
    try:
        prepare_folder(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        process.kill()
        process.wait()
    prepare_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_another_machine_are_left_alone_for_a_day(tmp_path):
    foreign = tmp_path / parts._partial_name("more-1")  # of a machine whose name begins like that of this one
    foreign.write_bytes(b"half")
    prepare_folder(tmp_path)
    assert foreign.exists()
    long_ago = time.time() - parts.FOREIGN_SECONDS - 1
    os.utime(foreign, (long_ago, long_ago))
    prepare_folder(tmp_path)
    assert not foreign.exists()


def test_without_locks_temporary_files_are_left_alone_for_a_day(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(parts.fcntl, "flock", unsupported)
    leftover = tmp_path / parts._partial_name("1")
    leftover.touch()
    prepare_folder(tmp_path)
    assert leftover.exists()
    os.utime(leftover, (0, 0))
    prepare_folder(tmp_path)
    assert not leftover.exists()
    write_file(tmp_path, "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_no_two_lists_of_parts_have_one_digest():
    assert len({digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc"), digest(b"abc", b"")}) == 4


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=40), st.lists(st.integers(0, 60), max_size=20))
def test_a_table_finds_the_first_of_equal_digests_and_nothing_else(known, picks):
    zeros = [bytes(16), b"\0" * 15 + b"\1", b"\1" + bytes(15)]
    wanted = [*zeros, *(known[pick % len(known)] for pick in picks if known)]
    index = DigestIndex(digest_array(known))
    expected = [known.index(one) if one in known else -1 for one in wanted]
    assert index.positions(digest_array(wanted)).tolist() == expected
    assert [index.position(one) for one in wanted] == expected
    assert len(index) == len(known)


def test_an_empty_table_finds_nothing():
    assert DigestIndex(digest_array([])).positions(digest_array([bytes(16)])).tolist() == [-1]
    assert DigestIndex(np.zeros(0, "S16")).position(b"x" * 16) == -1
