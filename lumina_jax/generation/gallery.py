"""Samples on disk: each as soon as it is drawn, and a sheet of all that came.

In: samples, in any order. Out: a PNG of each with its settings; of a clip also gif, and mp4 where PyAV is installed; of
a sound also wav; and sheet.png, of clips sheet.gif too. A file that is there already is never overwritten by another
picture: the new one gets a number behind its name. The same picture again changes nothing.
"""

import math
import os
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lumina_jax.generation.not_drawn import NotDrawn
from lumina_jax.generation.pipeline import Sample
from lumina_jax.generation.request import shortened
from lumina_jax.modalities import Files
from lumina_jax.modalities.files.contact_sheet import contact_sheet
from lumina_jax.modalities.files.movies import AnyFrames, frame_sheet, moving_sheet, save_gif
from lumina_jax.modalities.files.png import save_png
from lumina_jax.progress import counted

LONGEST_WORDS, MOST_BYTES = 60, 124
"""Characters of a prompt that a file name has, and bytes of the name; file systems allow 255 bytes, some 143."""
SHEET_PIXELS, SHEET_SAMPLES, SMALLEST_SIDE = 1 << 26, 4096, 32
"""A sheet has at most this many pixels and samples; pictures are made smaller for it, down to a side of 32."""


def save_as_drawn(gallery: "Gallery", drawn: Iterable[tuple[int, Sample | NotDrawn]], prompts: Sequence[str]) -> int:
    """Write each sample as it comes; returns how many. Those that are not finite are named on standard error.

    Ctrl-C leaves those that came, and a sheet of them.
    """
    saved = 0
    with counted("drawing", len(prompts)) as show:
        try:
            for done, (index, sample) in enumerate(drawn, start=1):
                if isinstance(sample, NotDrawn):
                    print(f"no sample of {shortened(prompts[index])}: {sample.reason}", file=sys.stderr, flush=True)
                else:
                    gallery.add(index, sample)
                    saved += 1
                show(done)
        except KeyboardInterrupt:
            print(f"{saved} of {len(prompts)} are drawn: {gallery.sheet() or 'no sheet'}", flush=True)
            raise
    return saved


class Gallery:
    """The files of the samples that a command draws.

    Args:
      folder: where they go, as `writable` has checked.
      prompts: of all samples that are to come.
      settings: written into each PNG, with the prompt and its index.
      files: how the samples of their modality become files.
      of_each: settings of each sample alone; None: there are none.
    """

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[str],
        settings: dict[str, Any],
        files: Files,
        of_each: Sequence[dict[str, Any]] | None = None,
    ):
        self._folder, self._prompts, self._settings, self._files = folder, list(prompts), settings, files
        self._of_each = [{}] * len(prompts) if of_each is None else of_each
        self._shown: dict[int, AnyFrames] = {}
        self.is_moving = False
        """Whether a sample had several frames."""

    def add(self, index: int, sample: Sample) -> Path:
        """Write the sample of a prompt; returns its PNG.

        Raises:
          OSError: a file cannot be written; the message says which, and that those before it are.
        """
        try:
            return self._added(index, sample)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(
                f"sample {index} cannot be written to {self._folder} ({reason}); those before it are there; free "
                "space, or name another folder with --out"
            ) from error

    @property
    def plural(self) -> str:
        """What the samples are called, such as "pictures"."""
        return self._files.plural(is_moving=self.is_moving)

    def _added(self, index: int, sample: Sample) -> Path:
        prompt, frames = self._prompts[index], self._files.frames(sample)
        about = {"prompt": prompt, "index": index, **self._settings, **self._of_each[index]}
        name = sample_name(index, prompt, len(self._prompts))
        path = save_png(self._folder / name, frame_sheet(frames), about, is_kept=True)
        self._files.save(path, sample)
        self.is_moving |= len(frames) > 1
        if len(self._shown) < SHEET_SAMPLES:
            self._shown[index] = self._reduced(frames)
        return path

    def sheet(self, name: str = "sheet") -> Path | None:
        """Write the sheet of the samples that came, in the order of their prompts; None if none did."""
        if not self._shown:
            return None
        clips = [self._shown[index] for index in sorted(self._shown)]
        prompts = [self._prompts[index] for index in sorted(self._shown)]
        sheet = contact_sheet([frame_sheet(clip) for clip in clips], prompts)
        path = save_png(self._folder / f"{name}.png", sheet, {"prompts": prompts, **self._settings}, is_kept=True)
        if any(len(clip) > 1 for clip in clips):
            save_gif(path.with_suffix(".gif"), moving_sheet(clips, prompts), self._files.rate)
        return path

    def _reduced(self, frames: AnyFrames) -> AnyFrames:
        """The frames, made smaller if a sheet of as many as are to come would be too large."""
        count = min(len(self._prompts), SHEET_SAMPLES) * len(frames)
        most = max(SMALLEST_SIDE, math.isqrt(SHEET_PIXELS // count))
        factor = most / max(frames.shape[1:3])
        return frames if factor >= 1 else np.stack([_resized(frame, factor) for frame in frames])


def sample_name(index: int, prompt: str, count: int) -> str:
    """A file name that sorts by index and can be read: 003-red-heart-noto-style.png.

    Args:
      count: of all samples, whose names have equally many digits.
    """
    digits = max(3, len(f"{count - 1}"))
    kept = "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in prompt[:1000].lower())
    words = "-".join(unicodedata.normalize("NFC", kept).split())[:LONGEST_WORDS]
    coding = sys.getfilesystemencoding()
    most = MOST_BYTES - digits - len("-.png")
    short = words.encode(coding, "ignore")[:most].decode(coding, "ignore").strip("-")
    return f"{index:0{digits}}-{short}.png" if short else f"{index:0{digits}}.png"


def writable(folder: Path) -> Path:
    """The folder, created if missing, after a file was written into it and removed.

    Raises:
      ValueError: it is a URL.
      OSError: it cannot be created or written to.
    """
    if "://" in str(folder) or str(folder).startswith(("gs:/", "s3:/")):
        raise ValueError(f"samples go into a local folder, but {str(folder)!r} is a URL; copy them there afterwards")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"samples cannot be written to {folder} ({reason}); name another folder with --out") from None
    return folder


def _resized(frame: UInt8[np.ndarray, "_ _ 3"], factor: float) -> UInt8[np.ndarray, "_ _ 3"]:
    height, width = (max(1, round(side * factor)) for side in frame.shape[:2])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
