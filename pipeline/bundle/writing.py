"""Writing the bundle: aside first, then in the old one's place, so that no half of one is seen."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.bundle import card, golden, manifest, snippets
from pipeline.bundle.layout import lay
from pipeline.bundle.manifest import LABELS, line_of
from pipeline.records import Artifact, Dataset, Measurement
from pipeline.store import writing
from pipeline.summary import BUNDLE, Report

VERSION = 1
"""Raised when the code changes what is in a bundle of the same results."""
SELFTEST = "selftest.py"


def write(
    report: Report,
    dataset: Dataset,
    artifacts: Sequence[tuple[Artifact, Measurement]],
    folder: Path,
) -> None:
    """Write the bundle of the run whose folder this is, in place of an older one.

    Raises `StoreError` where it cannot be written or a file is gone; the old one stays then.
    """
    with _replaced(folder) as bundle:
        _fill(report, dataset, artifacts, bundle)


def write_bare(artifacts: Sequence[Artifact], folder: Path) -> None:
    """The files alone, where there are no images to say more of them; otherwise as `write`."""
    with _replaced(folder) as bundle:
        _lay_all(artifacts, bundle)


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the bundle's place when all is well."""
    fresh, bundle, old = folder / ".bundle.new", folder / BUNDLE, folder / ".bundle.old"
    with writing(folder):
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            yield fresh
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if bundle.exists():
            bundle.rename(old)
        fresh.rename(bundle)
        shutil.rmtree(old, ignore_errors=True)


def _lay_all(artifacts: Iterable[Artifact], bundle: Path) -> None:
    for artifact in artifacts:
        if artifact.file is not None:
            lay(artifact, bundle)


def _fill(
    report: Report,
    dataset: Dataset,
    artifacts: Sequence[tuple[Artifact, Measurement]],
    bundle: Path,
) -> None:
    _lay_all((artifact for artifact, _ in artifacts), bundle)
    lines = "".join(f"{line_of(label)}\n" for label in dataset.labels)
    (bundle / LABELS).write_text(lines, encoding="utf-8", newline="\n")
    golden.write(dataset, artifacts, bundle)
    shutil.copyfile(snippets.TEMPLATES / SELFTEST, bundle / SELFTEST)
    told = manifest.build(report, dataset, artifacts)
    snippets.write(told, bundle)
    card.write(report, told, bundle)
    manifest.write(told, bundle)  # last: it has everybody's checksum
