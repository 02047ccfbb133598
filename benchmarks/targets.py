"""What a latency experiment measures: files named one by one, or all those of a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    skipped: list[str] = []
    for word in words:
        path = Path(word)
        if path.is_file() and path.suffix in SUFFIXES:
            targets.append(_target("/".join(path.absolute().parts[-2:]), path))
            continue
        folder = path if (path / summary.FILE).is_file() else runs / word
        if not (folder / summary.FILE).is_file():
            raise ConfigError(
                f"{word} is neither a file that can be timed ({', '.join(SUFFIXES)}) nor a run",
                remedy=f"Runs have a {summary.FILE} in their folder, such as {runs}/quick.",
            )
        for row, reason in _of_run(folder):
            if reason:
                skipped.append(f"{row.title}: {reason}")
            else:
                assert row.path is not None
                targets.append(_target(row.title, folder / row.path))
    if not targets:
        raise ConfigError("nothing here can be timed: " + "; ".join(skipped or words))
    return Found(tuple(targets), tuple(skipped))


def _of_run(folder: Path) -> Iterator[tuple[summary.ArtifactRow, str | None]]:
    """The files of a run, each with the reason why it is not timed."""
    for row in summary.read(folder).artifacts:
        if row.path is None:
            yield row, row.skipped or "there is no file"
            continue
        path = folder / row.path
        own = SUFFIXES.get(path.suffix)
        if own is None or row.format not in runtime.load(own).FORMATS:
            yield row, "its speed here says nothing of the format"
            continue
        if not path.is_file():
            raise StoreError(
                f"{path} is gone", f"Run it again: python -m pipeline run, of {folder.name}."
            )
        if row.sha256 and file_sha256(path) != row.sha256:
            raise ExportError(
                f"{path} is not the file that was exported: its checksum is another",
                remedy="Run the pipeline again, or time the file by its path.",
            )
        yield row, None


def _target(title: str, path: Path) -> Target:
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
    return Target(title, path, name, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
