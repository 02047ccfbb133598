"""Where a file lies in the bundle: <platform>/<format>/<precision>[-<variant>]/<file>.

A file for several platforms lies in the folder of each, so that a team takes its folder and has
everything; on disk the copies are one file where the file system can do that.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.records import Artifact, Measurement

OTHER = "other"
"""Folder of what says of no platform that it is for it."""


def places(artifact: Artifact) -> tuple[str, ...]:
    """Every place of its file, relative to the bundle. Raises ValueError where it has no file."""
    return _places(artifact, artifact.path.name)


def place(artifact: Artifact) -> str:
    """The first of its `places`."""
    return places(artifact)[0]


def placed(
    artifacts: Iterable[tuple[Artifact, Measurement]],
) -> list[tuple[Artifact, Measurement, str | None]]:
    """Each with the place of its file, or None where there is no file."""
    return [(each, found, place(each) if each.file else None) for each, found in artifacts]


def extra_places(artifact: Artifact) -> dict[str, tuple[str, ...]]:
    """The places of each of its extras: beside those of the file."""
    return {name: _places(artifact, name) for name in artifact.extras}


def _places(artifact: Artifact, name: str) -> tuple[str, ...]:
    kind = "-".join(filter(None, (artifact.precision, artifact.variant)))
    return tuple(
        f"{platform}/{artifact.format}/{kind}/{name}" for platform in artifact.platforms or (OTHER,)
    )


def lay(artifact: Artifact, bundle: Path) -> None:
    """Put the file of `artifact` and its extras into all their places.

    Raises `StoreError` where another artifact's file is there, or its own is gone.
    """
    for source, targets in _copies(artifact):
        first = bundle / targets[0]
        if first.exists():
            raise StoreError(
                f"{artifact.title} and another file share one place in the bundle: {targets[0]}",
                "Give one of them another variant in its exporter.",
            )
        if not source.exists():
            raise StoreError(
                f"{artifact.title}: its file is gone: {source}",
                "Run again with another --store, or remove its folder there.",
            )
        first.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, first)
        else:
            shutil.copy2(source, first)
        for target in targets[1:]:
            _again(first, bundle / target)


def _copies(artifact: Artifact) -> Iterator[tuple[Path, tuple[str, ...]]]:
    yield artifact.path, places(artifact)
    for name, targets in extra_places(artifact).items():
        yield artifact.folder / name, targets


def _again(source: Path, target: Path) -> None:
    """`source` a second time, without its bytes where that can be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
