"""Finding the weights of a published encoder or autoencoder in a folder.

In: a folder, and the usual names of the weights without suffix, such as "model". Out: the tensors by name. They are
read from one file, or from several with an index; from safetensors files, or from PyTorch's .bin files, which are read
without PyTorch and without running code. A variant such as model.fp16.safetensors is used if it is the only file of
weights.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lumina_jax.weights.files import INDEX, TensorFiles
from lumina_jax.weights.formats import describe_file
from lumina_jax.weights.hub import local_folder
from lumina_jax.weights.indices import indexed_files
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import JoinedTensors, Tensors

ENDINGS = ("safetensors", "bin")
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.gguf")

MAX_NAMES = 5
"""A message lists at most this many files."""


class StoredWeights(JoinedTensors):
    """The tensors of one or more files.

    Args:
      path: the path that error messages name.

    Raises:
      ValueError: a file is damaged or has another format, or two files hold the same tensor.
    """

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path, self.files = path, list(files)
        super().__init__([_open_file(file) for file in files])


def stored_weights(folder: Path, names: Sequence[str]) -> StoredWeights:
    """Open the weights in a folder.

    Args:
      names: names of the files without suffix, the usual one first.

    Raises:
      ValueError: there are none, or there are several variants, or a file is missing or damaged; the message lists
        the files that are there.
    """
    for file in _usual(folder, names):
        return _open(file)
    variants = [file for ending in ENDINGS for name in names for file in _variants(folder, name, ending)]
    if len(variants) == 1:
        return _open(variants[0])
    others = sorted(folder.glob(INDEX))
    if not variants and len(others) == 1:
        return _open(others[0])
    usual = f"{names[0]}.{ENDINGS[0]}"
    if variants:
        raise ValueError(
            f"{folder} has several variants of its weights but no {usual}: "
            f"{listed([file.name for file in variants], most=MAX_NAMES)}; rename the one to use to {usual}"
        )
    found = sorted(path for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    notes = [note for path in found[:MAX_NAMES] if (note := describe_file(path, "")) != f"{path} "]
    raise ValueError(
        f"{folder} must have {usual} or {usual}.index.json, but its only weights are: "
        f"{listed([path.name for path in found], most=MAX_NAMES)}; copy it there, rename the file to use to {usual}, "
        "or save the network in this format with "
        f"save_pretrained(folder, safe_serialization=True){''.join(f'. {note}' for note in notes)}"
    )


def downloaded(name: str | Path, files: Sequence[str], what: str) -> Path:
    """Return the folder of a downloaded repository; see `local_folder`. A missing .safetensors may be a .bin instead.

    Raises:
      ValueError: as for `local_folder`; the message has the command that downloads the .safetensors.
    """
    try:
        return local_folder(name, files=files, what=what)
    except ValueError:
        with contextlib.suppress(ValueError):
            return local_folder(name, files=[file.replace(*ENDINGS) for file in files], what=what)
        raise


def _usual(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the existing files and indices with the usual names."""
    for ending in ENDINGS:
        for name in names:
            candidates = (folder / f"{name}.{ending}", folder / f"{name}.{ending}.index.json")
            yield from (file for file in candidates if file.is_file())


def _variants(folder: Path, name: str, ending: str) -> list[Path]:
    """Return the variants of a file, such as NAME.fp16.safetensors or NAME.non_ema.safetensors."""
    return [*sorted(folder.glob(f"{name}.*.{ending}")), *sorted(folder.glob(f"{name}.{ending}.index.*.json"))]


def _open(file: Path) -> StoredWeights:
    return StoredWeights(file, indexed_files(file) if file.suffix == ".json" else [file])


def _open_file(file: Path) -> Tensors:
    return PickledTensors(file) if file.suffix == ".bin" else TensorFiles(file)
