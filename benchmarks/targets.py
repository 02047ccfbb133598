"""What a latency experiment measures: files named one by one, or all those of a run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import runtime
from pipeline import contract, summary
from pipeline.errors import ConfigError, ExportError, StoreError
from pipeline.store import file_sha256

SUFFIXES = {
    ".onnx": "onnx_runtime",
    ".ort": "onnx_runtime",
    ".tflite": "litert",
    ".pte": "executorch",
}
"""Files that can be timed, and by what."""
IMAGES = 64


@dataclass(frozen=True)
class Target:
    """One file to be timed."""

    title: str
    """No other target that was found with it has the same."""
    path: Path
    runtime: str
    images: NDArray[np.uint8] = field(repr=False)
    """Noise of the size that the file takes, uint8 [n, size, size, channels]: what is in an image
    changes nothing in how long it takes."""


@dataclass(frozen=True)
class Found:
    """The targets, and why others of a run are none."""

    targets: tuple[Target, ...]
    skipped: tuple[str, ...]


def find(words: Sequence[str], runs: Path) -> Found:
    """The files that `words` name: files, folders of runs, or names of runs below `runs`.

    Raises `ConfigError` for what is neither, `StoreError` for a damaged report, `ExportError` for a
    file altered since it was exported, or one that does not say which images it takes.
    """
    targets: list[Target] = []
    titles: list[Sequence[str]] = []
    skipped: list[str] = []
    for word in words:
        path = Path(word)
        if _can_be_timed(path):
            targets.append(_target(path))
            titles.append(_names_of_file(path))
            continue
        folder = run_folder(word, runs, f"a file that can be timed ({', '.join(SUFFIXES)})")
        for row, reason in _of_run(folder):
            names = _names_of_row(row.title, folder)
            if reason:
                skipped.append(f"{names[len(words) > 1]}: {reason}")
            else:
                assert row.path is not None
                targets.append(_target(folder / row.path))
                titles.append(names)
    if not targets:
        raise ConfigError("nothing here can be timed: " + "; ".join(skipped or words))
    named = zip(targets, unique(titles), strict=True)
    return Found(tuple(replace(target, title=title) for target, title in named), tuple(skipped))


def named_files(words: Sequence[str]) -> tuple[Target, ...]:
    """The files that `words` name, one each. Raises `ConfigError` for a run, and what `find` does.

    For commands that take this file or that: of a run they would take its first.
    """
    for word in words:
        if not _can_be_timed(Path(word)):
            raise ConfigError(
                f"{word} is no file that can be timed ({', '.join(SUFFIXES)})",
                remedy="Name a file: those of a run lie in its bundle/.",
            )
    return find(words, Path()).targets


def unique(titles: Sequence[Sequence[str]]) -> list[str]:
    """One title for each of several, from a shorter to longer ones; those of two differ.

    The shortest that does, and a number behind it where even the longest are the same.
    """
    lengths = [0] * len(titles)
    while True:
        found = [each[length] for each, length in zip(titles, lengths, strict=True)]
        counts = Counter(found)
        longer = [
            i
            for i, title in enumerate(found)
            if counts[title] > 1 and lengths[i] + 1 < len(titles[i])
        ]
        if not longer:
            break
        for i in longer:
            lengths[i] += 1
    seen: Counter[str] = Counter()
    for i, title in enumerate(found):
        seen[title] += 1
        if seen[title] > 1:
            found[i] = f"{title} ({seen[title]})"
    return found


def _can_be_timed(path: Path) -> bool:
    return path.is_file() and path.suffix in SUFFIXES


def _names_of_file(path: Path) -> list[str]:
    """The end of its path, from two parts to all."""
    parts = path.absolute().parts[1:]
    return ["/".join(parts[-n:]) for n in range(min(2, len(parts)), len(parts) + 1)]


def _names_of_row(title: str, folder: Path) -> list[str]:
    """The title that it has in its run, and with the run's name before it, or its folder."""
    parts = folder.resolve().parts[1:]
    names = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
    return [title, *(f"{name}: {title}" for name in names)]


def run_folder(word: str, runs: Path, other: str = "") -> Path:
    """The folder of the run that `word` names, itself or below `runs`; `other` is what else it
    could have been.

    Raises `ConfigError` where there is no report.
    """
    for folder in (Path(word), runs / word):
        if (folder / summary.FILE).is_file():
            return folder
    raise ConfigError(
        f"{word} is neither {other} nor a run" if other else f"{word} is no run",
        remedy=f"Runs have a {summary.FILE} in their folder, such as {runs}/quick.",
    )


def of_row(row: summary.ArtifactRow, folder: Path) -> Target:
    """The file of one row of the report in `folder`.

    Raises `ConfigError` where it cannot be timed here, `StoreError` where it is gone, and
    `ExportError` for one that was altered, has no checksum, or does not say which images it takes.
    """
    if reason := _unfit(row, folder):
        raise ConfigError(f"{row.title} of {folder} cannot be timed: {reason}")
    return replace(_target(file_of_row(row, folder)), title=f"{row.title} of {folder}")


def file_of_row(row: summary.ArtifactRow, folder: Path) -> Path:
    """The file of one row of the report in `folder`, and no other, whatever its format.

    Raises `StoreError` where it is gone, `ExportError` where it was altered or has no checksum.
    """
    if not row.sha256 or row.path is None:
        raise ExportError(f"{row.title} of {folder} has no checksum: it may be any file")
    _check_file(row, folder / row.path)
    return folder / row.path


def _of_run(folder: Path) -> Iterator[tuple[summary.ArtifactRow, str | None]]:
    """The files of a run, each with the reason why it is not timed."""
    for row in summary.read(folder).artifacts:
        yield row, _unfit(row, folder)


def _unfit(row: summary.ArtifactRow, folder: Path) -> str | None:
    """Why a row's file is not timed; None where it is.

    Raises `StoreError` where it is gone, `ExportError` where it was altered.
    """
    if row.path is None:
        return row.skipped or "there is no file"
    path = folder / row.path
    own = SUFFIXES.get(path.suffix)
    module = runtime.load(own) if own else None
    if module is None or row.format not in module.FORMATS:
        return "its speed here says nothing of the format"
    available = module.availability()
    if not available.ok:
        return available.in_full
    _check_file(row, path)
    return None


def _check_file(row: summary.ArtifactRow, path: Path) -> None:
    """Raise where the file of `row`, at `path`, is gone or another."""
    if not path.exists():
        raise StoreError(f"{path} is gone", "Run it again: python -m pipeline run.")
    if row.sha256 and file_sha256(path) != row.sha256:
        raise ExportError(
            f"{path} is not the file that was exported: its checksum is another",
            remedy="Run the pipeline again, or time the file by its path.",
        )


def _target(path: Path) -> Target:
    name = SUFFIXES[path.suffix]
    module = runtime.load(name)
    available = module.availability()
    if not available.ok:
        raise ConfigError(f"{path} cannot be timed: {available.detail}", available.remedy)
    try:
        spec = contract.read_input(module.read_metadata(path))
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"{path} does not say which images it takes: its metadata has no input contract",
            remedy="Export it with this project.",
        ) from error
    shape = (IMAGES, spec.size, spec.size, spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Target(path.name, path, name, images)
