"""Prompts from a text file.

In: the file, or standard input. Out: one caption for each line that is not empty.
"""

import codecs
import re
import sys
from pathlib import Path


def read_prompts(file: Path | None) -> list[str]:
    """The lines of a text file that are not empty, in UTF-8, or in UTF-16 with its mark; "-" is standard input.

    Raises:
      ValueError: there is no such file, or it is not text.
    """
    if file is None:
        return []
    if str(file) == "-":
        content = sys.stdin.buffer.read()
    elif file.is_dir() or not file.exists():
        raise ValueError(f"there is no file of prompts {file}; write one caption a line into it")
    else:
        content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"prompts must be UTF-8, but line {line} of {file} is not; save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"prompts must be text, but {file} holds zero bytes; save the file as UTF-8")
    lines = re.split("\r\n|\r|\n", text)  # splitlines() would cut captions at other characters, too
    return [line.strip() for line in lines if line.strip()]
