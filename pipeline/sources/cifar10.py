"""CIFAR-10, read and fetched by torchvision; torch is imported only when pixels are wanted.

CIFAR-100 differs in names only; see `find_cifar`.
"""

from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import DataError
from pipeline.progress import console
from pipeline.sources import Part, Raw, Source, Where, fingerprint, walk

Name = Literal["CIFAR10", "CIFAR100"]
FOLDERS: dict[Name, str] = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}
"""What the authors' archives unpack to."""


def find(where: Where) -> Source:
    """CIFAR-10 below `where.folder` or ``data/``."""
    return find_cifar("CIFAR10", where)


def find_cifar(name: Name, where: Where) -> Source:
    """The unpacked files, fetched if that is allowed."""
    root = where.folder or Path("data")
    unpacked = root / FOLDERS[name]
    if not unpacked.is_dir():
        _fetch(name, root, where.download)
    return Source(
        title=name.replace("R", "R-"),
        licence="none stated by its authors",
        fingerprint=fingerprint(walk(unpacked), name),
        read=partial(_read, name, root),
    )


def _remedy(name: Name, root: Path) -> str:
    return (
        f"Fetch the authors' Python version of the set, unpack it so that {root / FOLDERS[name]}/ "
        "exists, or put it elsewhere and set `folder` to where that folder lies."
    )


def _fetch(name: Name, root: Path, allowed: bool) -> None:
    if not allowed:
        what = f"{root / FOLDERS[name]} is missing, and download = false"
        raise DataError(what, _remedy(name, root))
    console.print(f"Fetching {name} (about 170 MB) into {root}/", markup=False, highlight=False)
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, name)(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        what = f"{name} is not in {root}/ and could not be downloaded: {error}"
        raise DataError(what, _remedy(name, root)) from error


def _read(name: Name, root: Path) -> Raw:
    from torchvision import datasets

    try:
        train, test = (getattr(datasets, name)(root, train=part) for part in (True, False))
    except (OSError, RuntimeError) as error:
        what = f"the files in {root / FOLDERS[name]} are incomplete or damaged: {error}"
        raise DataError(what, "Remove that folder. " + _remedy(name, root)) from error
    parts = (Part(x.data, np.asarray(x.targets, np.int64)) for x in (train, test))
    return Raw(labels=tuple(train.classes), train=next(parts), test=next(parts))
