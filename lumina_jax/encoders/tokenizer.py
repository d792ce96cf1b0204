"""Captions to token ids, as the published tokenizers cut them.

In: captions. Out: ids and the mask of the real ones, padded on the right to one length. The tokenizer is read from the
folder of the network; for a network that lies in text_encoder/ or text_encoder_2/ of a pipeline of diffusers, from
tokenizer/ or tokenizer_2/ beside it. tokenizer.json is read without transformers; other files by its AutoTokenizer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from lumina_jax.encoders.published import Marks

Ids = Callable[[str], tuple[list[int], bool]]
"""The ids of a caption, and whether some were cut."""
TOKENIZER_FILE = "tokenizer.json"
OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""One of which a folder without tokenizer.json must hold, for AutoTokenizer to start from."""
NETWORK_FOLDER, TOKENIZER_FOLDER = "text_encoder", "tokenizer"
_FAMILY = ("tokenizer", "spiece.", "vocab.", "merges.", "special_tokens_map", "added_tokens")
"""Beginnings of the names of all that a tokenizer may consist of."""
PAD = 0
"""The id at padding: any, as it is masked."""
PROBE = "A red heart."


class CaptionError(ValueError):
    """A caption that a tokenizer cannot cut."""


class CaptionTokenizer:
    """The tokenizer of `folder`, which gives each caption at most `max_tokens`.

    Args:
      marks: put around the caption's own tokens before they are cut at the end; None: the tokenizer's own marks, the
        closing one of which is kept when a caption is cut.

    Raises:
      ValueError: there are no files of a tokenizer, or they can't be read.
    """

    def __init__(self, folder: Path, max_tokens: int, marks: Marks | None):
        folder = tokenizer_folder(folder)
        self.max_tokens, self._marks = max_tokens, marks
        if (folder / TOKENIZER_FILE).is_file():
            self.files = [folder / TOKENIZER_FILE]
            own = _with_tokenizers(self.files[0], max_tokens, is_marked=marks is not None)
        else:
            self.files = sorted(path for path in folder.iterdir() if path.name.startswith(_FAMILY) and path.is_file())
            own = _with_transformers(folder, max_tokens, is_marked=marks is not None)
        self._own = _checked(own, folder)
        self._own(PROBE)  # some damage shows only when it is used

    def __call__(self, captions: Sequence[str]) -> tuple[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
        """Ids int32 [b, max_tokens], and True at the caption's own."""
        token_ids = np.full((len(captions), self.max_tokens), PAD, np.int32)
        mask = np.zeros(token_ids.shape, bool)
        for row, caption in enumerate(captions):  # one by one: no threads before a fork
            ids, _ = self._ids(caption)
            token_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return token_ids, mask

    def is_cut(self, caption: str) -> bool:
        """Whether the caption has more than max_tokens tokens."""
        return self._ids(caption)[1]

    def _ids(self, caption: str) -> tuple[list[int], bool]:
        own, is_cut = self._own(caption)
        if self._marks is None:
            return own, is_cut
        marked = [*self._marks.opening, *own, *self._marks.closing]
        return marked[: self.max_tokens], len(marked) > self.max_tokens


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of the network in `folder` lies.

    Raises:
      ValueError: nowhere; the message names the files that would do.
    """
    beside = folder.parent / folder.name.replace(NETWORK_FOLDER, TOKENIZER_FOLDER)
    candidates = [folder, *([beside] if beside != folder else [])]
    for candidate in candidates:
        if any((candidate / name).is_file() for name in (TOKENIZER_FILE, *OTHER_FILES)):
            return candidate
    raise ValueError(
        f"a text encoder needs its tokenizer, but {' and '.join(str(path) for path in candidates)} hold neither "
        f"{TOKENIZER_FILE} nor one of {', '.join(OTHER_FILES)}; copy it there from where the weights came"
    )


def _with_tokenizers(file: Path, max_tokens: int, *, is_marked: bool) -> Ids:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is not a readable tokenizer ({error}); copy it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if not is_marked:
        tokenizer.enable_truncation(max_tokens)

    def ids(caption: str) -> tuple[list[int], bool]:
        found = tokenizer.encode(caption, add_special_tokens=not is_marked)
        return found.ids, bool(found.overflowing)

    return ids


def _checked(own: Ids, folder: Path) -> Ids:
    """The same, but whatever the libraries raise is a CaptionError."""

    def ids(caption: str) -> tuple[list[int], bool]:
        try:
            return own(caption)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            reason = f"{type(error).__name__}: {error}"
            raise CaptionError(f"the tokenizer in {folder} fails on {caption!r} ({reason}); copy it again") from error

    return ids


def _with_transformers(folder: Path, max_tokens: int, *, is_marked: bool) -> Ids:
    from transformers import AutoTokenizer  # slow to import, and tokenizer.json never needs it

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged files make it raise all sorts of things
        raise ValueError(
            f"transformers can't read the tokenizer in {folder} ({error}); copy {TOKENIZER_FILE} there, or, for a "
            ".model file, pip install sentencepiece protobuf"
        ) from error
    tokenizer.truncation_side = "right"
    if is_marked:
        return lambda caption: (tokenizer(caption, add_special_tokens=False)["input_ids"], False)

    def ids(caption: str) -> tuple[list[int], bool]:
        found = tokenizer(caption, truncation=True, max_length=max_tokens)["input_ids"]
        return found, len(found) == max_tokens and len(tokenizer(caption)["input_ids"]) > max_tokens

    return ids
