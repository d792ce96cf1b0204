"""Recognising the format of a file by its first bytes.

In: a file that could not be read as expected. Out: its format and a remedy, for an error message.
"""

from pathlib import Path

from lumina_jax.documents import LFS_POINTER, LFS_REMEDY

SAFETENSORS_HEADER = 8
FORMATS = (
    (LFS_POINTER, LFS_REMEDY),
    (b"GGUF", "is a GGUF file, whose weights are usually quantised; use the .safetensors of the same model"),
    (b"PK\x03\x04", "is a zip file, as written by torch.save; if it is a PyTorch checkpoint, rename it to .pth"),
    (b"\x80", "is a pickle, as written by torch.save before 1.6; if it is a PyTorch checkpoint, rename it to .pth"),
    (b"\x89HDF", "is an HDF5 file, as written by Keras; use the .safetensors of the same model"),
    (b"\x93NUMPY", "is a numpy array; use the .safetensors of the same model"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (b"BZh", "is compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first"),
)  # fmt: skip
"""The first bytes of each format, and its description."""
PAGE = "is a web page, so the download failed, perhaps because it requires a login; download the file again"


def describe_file(path: Path, otherwise: str) -> str:
    """Describe a file, for example as "model.safetensors is a git-LFS pointer ...".

    Args:
      otherwise: the description if the format is unknown.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return f"{path} {otherwise}"
    if not start:
        return f"{path} is empty; copy it again"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return f"{path} {PAGE}"
    if start[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 2] == b'{"' and path.suffix != ".safetensors":
        return f"{path} is a safetensors file; rename it to .safetensors"
    found = next((meaning for sign, meaning in FORMATS if start.startswith(sign)), otherwise)
    return f"{path} {found}"
