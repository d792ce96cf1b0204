"""What a file is, told by its first bytes, so that an error can say more than "cannot be read".

In: a path or the bytes of a file. Out: the reason why it is not what was expected, and what helps.
"""

import stat
from pathlib import Path
from typing import Literal, NamedTuple

Medium = Literal["image", "video", "audio"]
"""The keys of a line of captions."""
HEAD = 512
"""Bytes that are looked at."""


class FileKind(NamedTuple):
    """A kind of file."""

    name: str
    medium: Medium | None
    """What it holds, if that is something to train on."""
    remedy: str = ""
    """What makes it readable, if it is not."""


_PICTURE = "save it as PNG or JPEG"
_SOUND = "pip install 'lumina_jax[media]', or convert it: `ffmpeg -i IN OUT.flac`"
_PAGE = FileKind("a web page, as a failed download leaves it", None, "download it again")
_ARCHIVE = FileKind("an archive", None, "unpack it")
_JXL = FileKind("a JPEG XL picture", "image", _PICTURE)
_MPEG = FileKind("an MPEG video", "video")
_MP3 = FileKind("an MP3 sound", "audio")
HEIC = FileKind("a HEIC picture", "image", "pip install pillow-heif, or save it as JPEG")
_AVIF = FileKind("an AVIF picture", "image", "pip install 'pillow>=11.3', or save it as PNG")
STARTS: dict[bytes, FileKind] = {
    b"version https://git-lfs": FileKind("a pointer of Git LFS", None, "fetch the file itself with `git lfs pull`"),
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"<svg": FileKind("an SVG drawing", "image", _PICTURE),
    b"<?xml": FileKind("an XML document, perhaps an SVG drawing", None, _PICTURE),
    b"%PDF": FileKind("a PDF document", None, _PICTURE),
    b"%!PS": FileKind("a PostScript drawing", "image", _PICTURE),
    b"PK\x03\x04": _ARCHIVE,
    b"\x1f\x8b": _ARCHIVE,
    b"7z\xbc\xaf\x27\x1c": _ARCHIVE,
    b"Rar!": _ARCHIVE,
    b"\xff\x0a": _JXL,
    b"\x00\x00\x00\x0cJXL ": _JXL,
    b"\xff\xd8\xff": FileKind("a JPEG picture", "image"),
    b"\x89PNG": FileKind("a PNG picture", "image"),
    b"GIF8": FileKind("a GIF picture", "image"),
    b"\x1a\x45\xdf\xa3": FileKind("a Matroska or WebM video", "video"),
    b"FLV": FileKind("a Flash video", "video"),
    b"\x00\x00\x01\xba": _MPEG,
    b"\x00\x00\x01\xb3": _MPEG,
    b"fLaC": FileKind("a FLAC sound", "audio"),
    b"ID3": _MP3,
    b"\xff\xfb": _MP3,
    b"\xff\xf1": FileKind("an AAC sound", "audio", _SOUND),
}
"""By the first bytes of a file, in which capitals and small letters count alike."""
RIFF: dict[bytes, FileKind] = {
    b"wave": FileKind("a WAV sound", "audio"),
    b"avi ": FileKind("an AVI video", "video"),
    b"webp": FileKind("a WebP picture", "image"),
}
"""By the form of a RIFF file."""
BRANDS: dict[bytes, FileKind] = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    **dict.fromkeys((b"m4a ", b"m4b ", b"m4p "), FileKind("an MPEG-4 sound (m4a)", "audio", _SOUND)),
}
"""By the brand of an MPEG-4 container; all others are videos."""


def check_file(path: Path) -> None:
    """Refuse what is no file: reading a pipe or a device may never end.

    Raises:
      ValueError: it is missing, a folder, a pipe or a device, or its name is one that no file can have.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"there is no file {str(path)!r} ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a pipe, a socket or a device; copy what it gives into a file")


def file_kind(file: Path | bytes) -> FileKind | None:
    """What a file is; None when its first bytes do not say."""
    head = _head(file).lower()
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], FileKind("an MPEG-4 video", "video"))
    if head.startswith(b"riff"):
        return RIFF.get(head[8:12])
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    starts = ((start.lower(), kind) for start, kind in STARTS.items())
    return next((kind for start, kind in starts if head.startswith(start) or text.startswith(start)), None)


def mistaken(file: Path | bytes, wanted: Medium) -> str | None:
    """What a file is that could not be read as `wanted`, and what helps; None when its first bytes do not say."""
    head = _head(file)
    if not head:
        return "it is empty"
    if not any(head):
        return "it begins with zeros, as an unfinished download or copy does; fetch it again"
    kind = file_kind(head)
    if kind is None:
        return None
    if kind.medium not in (None, wanted):
        return f'it is {kind.name}; name it as {{"{kind.medium}": file}}'
    return f"it is {kind.name}; {kind.remedy}" if kind.remedy else None


def _head(file: Path | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:HEAD]
    with file.open("rb") as opened:
        return opened.read(HEAD)
