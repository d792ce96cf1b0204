"""Captions to the features that the model attends to.

In: captions, and a frozen language model read from local files. Out: `TextFeatures` with an unpooled hidden state for
every token. `caption_cache` stores the features of a training set. Nothing is downloaded.

To add an architecture, write one function and one entry in `ARCHITECTURES`; see docs/text-encoders.md.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, cast, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.bert import load_bert
from lumina_jax.encoders.caption_warnings import DetectsTruncation
from lumina_jax.encoders.clap import clap_file, load_clap
from lumina_jax.encoders.clip import load_clip
from lumina_jax.encoders.llama import load_decoder
from lumina_jax.encoders.phonemes import PhonemeEncoder
from lumina_jax.encoders.published import CONFIG_FILE, HiddenState, LoadOptions, Network, read_config, read_weights
from lumina_jax.encoders.stored import downloaded
from lumina_jax.encoders.t5 import load_t5
from lumina_jax.encoders.tokenizer import NETWORK_FOLDER, TOKENIZER_FOLDER, CaptionTokenizer, tokenizer_folder
from lumina_jax.parallel.mesh import axis_size, batch_sharding
from lumina_jax.tokens import TextFeatures

BATCH = 32
"""The batch size of the network. It is constant, so that the network compiles once and results do not depend on it."""
SHIPPED_ENCODERS = {"minilm": Path(__file__).parent / "minilm"}
"""The encoders that this package carries, by name, and their folders."""
LARGE_FILE, HASHED_BYTES = 1 << 30, 1 << 20
"""Of a file of at least LARGE_FILE bytes, only the header, the size and HASHED_BYTES at either end are hashed."""
PROBE = ("", "Two red hearts, painted at night: 12 x 34!")
"""Captions on which joined encoders must agree when they are loaded."""
ARCHITECTURES: dict[str, Callable[[Path, LoadOptions], Network]] = {
    "bert": load_bert,
    "clip": load_clip,
    "clip_text_model": load_clip,
    "gemma": load_decoder,
    "llama": load_decoder,
    "t5": load_t5,
}
"""The function that loads a network from its folder, by the `model_type` in config.json."""


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen language model with its tokenizer."""

    width: int
    """The width c of the features."""
    max_tokens: int
    """The length t of the features; longer captions are truncated."""
    fingerprint: str
    """A hash of weights, tokenizer, state, type and max_tokens, which names the cache folder."""

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """Encode captions, one in each row: [b, max_tokens, width] float32, with zeros and segment 0 at padding.

        The empty string is a caption as well.
        """
        ...


def text_encoder(
    name: str | Path,
    max_tokens: int,
    *,
    mesh: Mesh | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    see_padding: bool = False,
) -> TextEncoder:
    """Load an encoder that this package carries, one of a folder, or a downloaded repository of the Hugging Face hub.

    Args:
      name: "minilm", "phonemes" (for a model with text_layers), a folder with config.json, tokenizer and weights, or
        owner/name or owner/name/folder on the hub. A suffix ":last" or ":penultimate" chooses a hidden state other than
        the usual one of the architecture. Several names joined by "+" concatenate features along the width (see
        `JointTextEncoder`); several joined by "," concatenate them along the tokens (see `SerialTextEncoder`).
      mesh: devices over which parameters and captions are sharded; all its processes must encode the same captions.
      dtype: the type of parameters and activations.
      see_padding: treat padding as real tokens, in the network and in the features.

    Raises:
      ValueError: the folder or a file is missing; the architecture is unknown; `max_tokens` is less than
        2 (the opening and the closing token) or more than the positions of the network.
    """
    if name == "phonemes":
        return PhonemeEncoder(max_tokens)
    if "," in str(name) and not Path(name).is_dir():
        serial = [
            text_encoder(part, max_tokens, mesh=mesh, dtype=dtype, see_padding=see_padding)
            for part in str(name).split(",")
        ]
        return SerialTextEncoder(serial)
    parts = [str(name)] if Path(name).is_dir() else str(name).split("+")
    options = LoadOptions(dtype=jnp.dtype(dtype), tokens=max_tokens, mesh=mesh)
    encoders = [_one_encoder(part, options, see_padding=see_padding) for part in parts]
    return encoders[0] if len(encoders) == 1 else JointTextEncoder(encoders)


class LocalTextEncoder:
    """A `TextEncoder` made of the network and the tokenizer in a folder."""

    def __init__(self, folder: Path, options: LoadOptions, *, see_padding: bool = False):
        if options.tokens < 2:
            raise ValueError(f"max_tokens={options.tokens} must be at least 2, for the opening and closing token")
        network = _network(folder, options)
        config = network.config
        self.width: int = config.width
        self.max_tokens = options.tokens
        self.tokenize = CaptionTokenizer(folder, self.max_tokens, config.special_tokens)
        self._vocabulary: int = config.vocabulary
        self._see_padding = see_padding
        clap = clap_file(folder)
        files = [folder / CONFIG_FILE, *self.tokenize.files, *(read_weights(folder).files if clap is None else [clap])]
        identity = f"{digest_of_files(files)} {self.max_tokens} {config.state} {options.dtype}{' padded' * see_padding}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._hidden_states = _compiled(network, options.mesh)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`."""
        _check_list(captions)
        count = len(captions)
        token_ids, mask = self.tokenize(captions)
        if self._see_padding:
            mask = np.ones_like(mask)
        if count and token_ids.max() >= self._vocabulary:
            raise ValueError(
                f"the tokenizer returned token {token_ids.max()}, but the vocabulary of the network has only "
                f"{self._vocabulary} tokens; copy both from the same model"
            )
        features = np.zeros((count, self.max_tokens, self.width), np.float32)
        for start in range(0, count, BATCH):
            batch = np.minimum(np.arange(start, start + BATCH), count - 1)  # the last batch repeats the last caption
            hidden = np.asarray(self._hidden_states(token_ids[batch], mask[batch]))[: count - start]
            features[start : start + BATCH] = np.where(mask[batch][: count - start, :, None], hidden, 0)
        return TextFeatures(features, mask.astype(np.int32))

    def is_truncated(self, caption: str) -> bool:
        """Whether the caption is truncated."""
        return self.tokenize.is_truncated(caption)


class JointTextEncoder:
    """Several encoders with the same tokens, whose features are concatenated along the width.

    SDXL joins CLIP-L and CLIP-bigG in this way. Encoders whose token ids differ on a caption are refused, because one
    row of features would then describe two pieces of text.
    """

    def __init__(self, encoders: Sequence[LocalTextEncoder]):
        self.encoders = list(encoders)
        self.width = sum(encoder.width for encoder in encoders)
        self.max_tokens = encoders[0].max_tokens
        fingerprints = " ".join(encoder.fingerprint for encoder in encoders)
        self.fingerprint = hashlib.sha256(fingerprints.encode()).hexdigest()[:16]
        self._check_tokens(PROBE)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`.

        Raises:
          ValueError: the tokenizers disagree on a caption.
        """
        self._check_tokens([captions] if isinstance(captions, str) else captions)
        parts = [encoder.encode(captions) for encoder in self.encoders]
        return TextFeatures(np.concatenate([part.features for part in parts], axis=-1), parts[0].segment_ids)

    def is_truncated(self, caption: str) -> bool:
        """Whether the caption is truncated."""
        return self.encoders[0].is_truncated(caption)

    def _check_tokens(self, captions: Sequence[str]) -> None:
        first, *others = [encoder.tokenize(captions) for encoder in self.encoders]
        for token_ids, mask in others:
            is_equal = ((token_ids == first[0]) & (mask == first[1])).all(axis=1)
            if not is_equal.all():
                raise ValueError(
                    "encoders joined by + must have the same tokens, but these differ on "
                    f"{captions[int(np.argmin(is_equal))]!r}; join only encoders that share a tokenizer, such as "
                    "CLIP-L and CLIP-bigG"
                )


class SerialTextEncoder:
    """Several encoders of the same width, whose features are concatenated along the tokens.

    Lumina-T2Audio joins CLAP and T5 in this way. A caption may end in a structured caption, which begins with "<", such
    as "a bell rings <bell ringing& all>". The first encoder then reads the text before it, and the others read the
    structured caption only.
    """

    def __init__(self, encoders: Sequence[TextEncoder]):
        widths = [encoder.width for encoder in encoders]
        if len(set(widths)) > 1:
            raise ValueError(f"encoders joined by a comma must have the same width, but have {widths}; choose others")
        self.encoders, self.width = list(encoders), widths[0]
        self.max_tokens = sum(encoder.max_tokens for encoder in encoders)
        fingerprints = ", ".join(encoder.fingerprint for encoder in encoders)
        self.fingerprint = hashlib.sha256(fingerprints.encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`. Padding of each encoder remains between the features."""
        _check_list(captions)
        first, *others = self.encoders
        divided = [_plain_and_structured(caption) for caption in captions]
        plain, structured = [plain for plain, _ in divided], [structured for _, structured in divided]
        parts = [first.encode(plain), *(encoder.encode(structured) for encoder in others)]
        return TextFeatures(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts)))

    def is_truncated(self, caption: str) -> bool:
        """Whether any encoder truncates its part of the caption."""
        plain, structured = _plain_and_structured(caption)
        texts = [plain, *[structured] * (len(self.encoders) - 1)]
        return any(
            isinstance(encoder, DetectsTruncation) and encoder.is_truncated(text)
            for encoder, text in zip(self.encoders, texts)
        )


def _plain_and_structured(caption: str) -> tuple[str, str]:
    """Split a caption into the text for the first encoder and the text for the others."""
    before, bracket, after = caption.partition("<")
    plain = before.strip() if bracket and before.strip() else caption
    return plain, f"<{after}" if bracket else caption


def _check_list(captions: Sequence[str]) -> None:
    if isinstance(captions, str):
        raise ValueError(f"captions must be a list of captions, but {captions=}; write [captions]")


def digest_of_files(files: Iterable[Path]) -> str:
    """Hash the contents of files; of large files, only the header, the size and both ends.

    The header of a safetensors file contains the names, types, shapes and offsets of all tensors.
    """
    total = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        with open(path, "rb") as file:
            if size < LARGE_FILE:
                total.update(hashlib.file_digest(file, "sha256").digest())
                continue
            total.update(f"{size} ".encode())
            header = file.read(8)
            length = 0 if path.suffix == ".bin" else int.from_bytes(header, "little")
            total.update(header + file.read(min(length, LARGE_FILE) + HASHED_BYTES))
            file.seek(size - HASHED_BYTES)
            total.update(file.read())
    return total.hexdigest()


def _one_encoder(name: str, options: LoadOptions, *, see_padding: bool) -> LocalTextEncoder:
    network, state = _split_state(name)
    return LocalTextEncoder(_folder(network), dataclasses.replace(options, state=state), see_padding=see_padding)


def _split_state(name: str) -> tuple[str, HiddenState | None]:
    network, colon, state = name.rpartition(":")
    if not colon or Path(name).is_dir():
        return name, None
    if state not in get_args(HiddenState):
        raise ValueError(f"text encoder {name!r} must end in {' or '.join(f':{one}' for one in get_args(HiddenState))}")
    return network, cast(HiddenState, state)


def _folder(name: str) -> Path:
    """Return the folder of a network, all of whose files must exist; nothing is downloaded."""
    if name in SHIPPED_ENCODERS:
        return SHIPPED_ENCODERS[name]
    if Path(name).is_dir():
        return Path(name)
    owner, *rest = name.split("/")
    if not owner or owner.startswith(".") or not rest:
        raise ValueError(
            f"text encoder {name!r} must be one of {sorted(SHIPPED_ENCODERS)}, an existing folder, or a repository of "
            "the Hugging Face hub as owner/name"
        )
    repository, inside = f"{owner}/{rest[0]}", "".join(f"{part}/" for part in rest[1:])
    beside = inside.replace(NETWORK_FOLDER, TOKENIZER_FOLDER)
    tokenizer = f"{inside}token*" if beside == inside else f"{beside}*"
    files = (f"{inside}{CONFIG_FILE}", f"{inside}*.safetensors*", tokenizer)
    return downloaded(repository, files, "text encoder") / inside


def _network(folder: Path, options: LoadOptions) -> Network:
    tokenizer_folder(folder)  # fails before 14 GB are read
    architecture = read_config(folder).get("model_type")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"model_type={architecture!r} in {folder / CONFIG_FILE} must be one of {sorted(ARCHITECTURES)}"
        )
    if architecture == "bert" and clap_file(folder) is not None:
        return load_clap(folder, options)
    return ARCHITECTURES[architecture](folder, options)


def _compiled(
    network: Network, mesh: Mesh | None
) -> Callable[[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]], Float[Array, "b t m"]]:
    """Compile a network. On a mesh, the batch is sharded and the result is replicated."""
    forward = type(network).__call__
    if mesh is None:
        return functools.partial(jax.jit(forward), network)
    whole = NamedSharding(mesh, PartitionSpec())
    rows = whole if BATCH % axis_size(mesh, "data", "fsdp") else batch_sharding(mesh)
    return functools.partial(jax.jit(forward, in_shardings=(None, rows, rows), out_shardings=whole), network)
