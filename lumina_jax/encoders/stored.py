"""The weights of a published encoder or autoencoder, in whichever of the usual files they lie.

In: a folder, and the names that such weights have without their ending, "model" say. Out: the tensors by name, of one
file or of several and their index, as safetensors or as PyTorch saves them (.bin, read without PyTorch and without
running what is in it), and also of the only variant, such as model.fp16.safetensors, where there is nothing else.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lumina_jax.weights.files import INDEX, TensorFiles
from lumina_jax.weights.hub import local_folder
from lumina_jax.weights.indices import files_of
from lumina_jax.weights.kinds import told
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import JoinedTensors, Tensors

ENDINGS = ("safetensors", "bin")
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.gguf")

SHOWN = 5
"""Files named in a message."""


class StoredWeights(JoinedTensors):
    """The tensors of some files.

    Args:
      path: how messages call them.

    Raises:
      ValueError: a file is damaged or no such file, or two hold one tensor.
    """

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path, self.files = path, list(files)
        super().__init__([_opened(file) for file in files])


def stored_weights(folder: Path, names: Sequence[str]) -> StoredWeights:
    """The weights in a folder.

    Args:
      names: of the files without their ending, the usual one first.

    Raises:
      ValueError: there are none, several variants, or a file is missing or damaged; the message names what is there.
    """
    for file in _usual(folder, names):
        return _of(file)
    variants = [file for ending in ENDINGS for name in names for file in _variants(folder, name, ending)]
    if len(variants) == 1:
        return _of(variants[0])
    others = sorted(folder.glob(INDEX))
    if not variants and len(others) == 1:
        return _of(others[0])
    usual = f"{names[0]}.{ENDINGS[0]}"
    if variants:
        raise ValueError(
            f"{folder} holds several variants of its weights and no {usual}: "
            f"{listed([file.name for file in variants], most=SHOWN)}; rename the one to use to {usual}"
        )
    found = sorted(path for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    notes = [note for path in found[:SHOWN] if (note := told(path, "")) != f"{path} "]
    raise ValueError(
        f"{folder} must hold {usual} or {usual}.index.json, but of weights it holds "
        f"{listed([path.name for path in found], most=SHOWN)}; copy it there, rename the file to use to {usual}, or "
        "save the network in this format with "
        f"save_pretrained(folder, safe_serialization=True){''.join(f'. {note}' for note in notes)}"
    )


def downloaded(name: str | Path, files: Sequence[str], what: str) -> Path:
    """See `local_folder`; where there is no .safetensors that a pattern wants, a .bin does.

    Raises:
      ValueError: as `local_folder`, with the command that downloads the .safetensors.
    """
    try:
        return local_folder(name, files=files, what=what)
    except ValueError:
        with contextlib.suppress(ValueError):
            return local_folder(name, files=[file.replace(*ENDINGS) for file in files], what=what)
        raise


def _usual(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Files and indices of the usual names that are there."""
    for ending in ENDINGS:
        for name in names:
            candidates = (folder / f"{name}.{ending}", folder / f"{name}.{ending}.index.json")
            yield from (file for file in candidates if file.is_file())


def _variants(folder: Path, name: str, ending: str) -> list[Path]:
    """Files and indices in another type or without averaging, such as NAME.fp16.safetensors."""
    return [*sorted(folder.glob(f"{name}.*.{ending}")), *sorted(folder.glob(f"{name}.{ending}.index.*.json"))]


def _of(file: Path) -> StoredWeights:
    return StoredWeights(file, files_of(file) if file.suffix == ".json" else [file])


def _opened(file: Path) -> Tensors:
    return PickledTensors(file) if file.suffix == ".bin" else TensorFiles(file)
