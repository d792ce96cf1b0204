"""Captions to token ids, with the published tokenizers.

In: captions. Out: ids, padded on the right to one length, and a mask that is true at real tokens. The tokenizer is read
from the folder of the network, or, if that is text_encoder/ or text_encoder_2/ of a diffusers pipeline, from tokenizer/
or tokenizer_2/ next to it. tokenizer.json is read directly; other files are read by transformers' AutoTokenizer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from lumina_jax.encoders.published import SpecialTokens

Tokenize = Callable[[str], tuple[list[int], bool]]
"""A function from a caption to its ids, and whether they were truncated."""
TOKENIZER_FILE = "tokenizer.json"
OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""A folder without tokenizer.json must hold one of these files for AutoTokenizer."""
NETWORK_FOLDER, TOKENIZER_FOLDER = "text_encoder", "tokenizer"
_PREFIXES = ("tokenizer", "spiece.", "vocab.", "merges.", "special_tokens_map", "added_tokens")
"""Prefixes of the names of all files that may belong to a tokenizer."""
PAD = 0
"""The id at padding. Its value does not matter, because padding is masked."""
PROBE = "A red heart."


class CaptionError(ValueError):
    """A tokenizer failed on a caption."""


class CaptionTokenizer:
    """The tokenizer in `folder`, which returns at most `max_tokens` tokens for each caption.

    Args:
      special_tokens: put around the tokens of a caption before it is truncated; None: the tokenizer adds its special
        tokens, and keeps the closing one when it truncates.

    Raises:
      ValueError: the tokenizer's files are missing or cannot be read.
    """

    def __init__(self, folder: Path, max_tokens: int, special_tokens: SpecialTokens | None):
        folder = tokenizer_folder(folder)
        self.max_tokens, self._special_tokens = max_tokens, special_tokens
        if (folder / TOKENIZER_FILE).is_file():
            self.files = [folder / TOKENIZER_FILE]
            tokenize = _with_tokenizers(self.files[0], max_tokens, adds_special=special_tokens is None)
        else:
            self.files = sorted(path for path in folder.iterdir() if path.name.startswith(_PREFIXES) and path.is_file())
            tokenize = _with_transformers(folder, max_tokens, adds_special=special_tokens is None)
        self._tokenize = _checked(tokenize, folder)
        self._tokenize(PROBE)  # some damage shows only when the tokenizer is used

    def __call__(self, captions: Sequence[str]) -> tuple[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
        """Return ids int32 [b, max_tokens], and a mask that is true at real tokens."""
        token_ids = np.full((len(captions), self.max_tokens), PAD, np.int32)
        mask = np.zeros(token_ids.shape, bool)
        for row, caption in enumerate(captions):  # one by one, because threads must not start before a fork
            ids, _ = self._ids(caption)
            token_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return token_ids, mask

    def is_truncated(self, caption: str) -> bool:
        """Whether the caption has more than `max_tokens` tokens."""
        return self._ids(caption)[1]

    def _ids(self, caption: str) -> tuple[list[int], bool]:
        ids, is_truncated = self._tokenize(caption)
        if self._special_tokens is None:
            return ids, is_truncated
        ids = [*self._special_tokens.opening, *ids, *self._special_tokens.closing]
        return ids[: self.max_tokens], len(ids) > self.max_tokens


def tokenizer_folder(folder: Path) -> Path:
    """Return the folder with the tokenizer of the network in `folder`.

    Raises:
      ValueError: there is none; the message names the files that are needed.
    """
    beside = folder.parent / folder.name.replace(NETWORK_FOLDER, TOKENIZER_FOLDER)
    candidates = [folder, *([beside] if beside != folder else [])]
    for candidate in candidates:
        if any((candidate / name).is_file() for name in (TOKENIZER_FILE, *OTHER_FILES)):
            return candidate
    raise ValueError(
        f"a text encoder needs its tokenizer, but {' and '.join(str(path) for path in candidates)} have neither "
        f"{TOKENIZER_FILE} nor one of {', '.join(OTHER_FILES)}; copy it there from the source of the weights"
    )


def _with_tokenizers(file: Path, max_tokens: int, *, adds_special: bool) -> Tokenize:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is not a readable tokenizer ({error}); copy it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if adds_special:
        tokenizer.enable_truncation(max_tokens)

    def ids(caption: str) -> tuple[list[int], bool]:
        found = tokenizer.encode(caption, add_special_tokens=adds_special)
        return found.ids, bool(found.overflowing)

    return ids


def _checked(tokenize: Tokenize, folder: Path) -> Tokenize:
    """Return `tokenize`, but with every exception of the libraries turned into a CaptionError."""

    def ids(caption: str) -> tuple[list[int], bool]:
        try:
            return tokenize(caption)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is not an Exception
            reason = f"{type(error).__name__}: {error}"
            raise CaptionError(f"the tokenizer in {folder} failed on {caption!r} ({reason}); copy it again") from error

    return ids


def _with_transformers(folder: Path, max_tokens: int, *, adds_special: bool) -> Tokenize:
    from transformers import AutoTokenizer  # slow to import, and not needed for tokenizer.json

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged files raise many kinds of exception
        raise ValueError(
            f"transformers cannot read the tokenizer in {folder} ({error}); copy {TOKENIZER_FILE} there, or, for a "
            ".model file, run: pip install sentencepiece protobuf"
        ) from error
    tokenizer.truncation_side = "right"
    if not adds_special:
        return lambda caption: (tokenizer(caption, add_special_tokens=False)["input_ids"], False)

    def ids(caption: str) -> tuple[list[int], bool]:
        found = tokenizer(caption, truncation=True, max_length=max_tokens)["input_ids"]
        return found, len(found) == max_tokens and len(tokenizer(caption)["input_ids"]) > max_tokens

    return ids
