"""Ways to damage a file."""

from pathlib import Path


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")
