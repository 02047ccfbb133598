"""Text files that are written whole or not at all, for others read them while they are replaced."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Put `text` into `path` in one step: aside, then renamed.

    Whatever was there stays as it was until then, and for good where this fails. Raises `OSError`
    where the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
