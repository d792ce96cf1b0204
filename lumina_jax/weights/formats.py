"""What a file is that holds no tensors which we read, by its first bytes.

In: a file that could not be read as expected. Out: what it is and what helps, for an error message.
"""

from pathlib import Path

from lumina_jax.documents import LFS_POINTER, LFS_REMEDY

SAFETENSORS_HEADER = 8
KINDS = (
    (LFS_POINTER, LFS_REMEDY),
    (b"GGUF", "is a GGUF file of llama.cpp and ComfyUI, whose weights are mostly quantised; take the same model as "
     ".safetensors"),
    (b"PK\x03\x04", "is a zip, as torch.save writes; if it is a checkpoint of PyTorch, name it .pth"),
    (b"\x80", "is a pickle, as torch.save wrote before PyTorch 1.6; resave it: "
     "torch.save(torch.load(path, map_location='cpu', weights_only=True), 'model.pth')"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes; take the same model as .safetensors"),
    (b"\x93NUMPY", "is an array of numpy; take the same model as .safetensors"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (b"BZh", "is compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first"),
)  # fmt: skip
"""First bytes, and what they mean."""
PAGE = "is a web page, so a download went wrong, such as one that needs you to be logged in; download the file again"


def describe_file(path: Path, otherwise: str) -> str:
    """The path and what the file is, such as "model.safetensors is a pointer of git-LFS, ...".

    Args:
      otherwise: what is said of a file that is none of the known kinds.
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
        return f"{path} is a safetensors file; name it .safetensors"
    found = next((meaning for sign, meaning in KINDS if start.startswith(sign)), otherwise)
    return f"{path} {found}"
