"""Fashion-MNIST: found on disk, or fetched from Debian's archive or by torchvision.

The Debian package comes first because its mirrors are near, signed and checked by apt; it is
unpacked without root and without being installed.
"""

import gzip
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.progress import console
from pipeline.sources import Part, Raw, Source, Where, fingerprint, stat_file, walk

LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
NAMES = tuple(
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
"""The authors' four files; each may end in .gz."""
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package lies when it is installed."""
CACHE = Path("data/fashion_mnist")
TIMEOUT = 600
"""Seconds for apt to fetch 30 MB."""


def find(where: Where) -> Source:
    """The four files in `where.folder`; else installed, in the cache, or fetched into it."""
    found = _locate(where)
    return Source(
        title="Fashion-MNIST",
        licence="MIT",
        fingerprint=fingerprint(stat_file(str(path), path.name) for path in found.values()),
        read=partial(_read, found),
    )


def _locate(where: Where) -> Mapping[str, Path]:
    if where.folder is not None:
        if found := _complete(where.folder):
            return found
        raise DataError(f"no Fashion-MNIST in {where.folder}/", _remedy("Or leave `folder` out."))
    if found := _complete(INSTALLED) or _complete(CACHE):
        return found
    if not where.download:
        what = f"no Fashion-MNIST in {INSTALLED} nor in {CACHE}/, and download = false"
        raise DataError(what, _remedy())
    _fetch()
    return _complete(CACHE)


def _complete(root: Path) -> dict[str, Path]:
    """The four files in NAMES' order, all from one folder in `root`; none where they are not."""
    folders: dict[Path, dict[str, Path]] = {}
    for file in walk(root) if root.is_dir() else ():
        path = root / file.name
        name = path.name.removesuffix(".gz")
        if name in NAMES:
            folders.setdefault(path.parent, {}).setdefault(name, path)
    whole = [folder for folder, files in folders.items() if len(files) == len(NAMES)]
    if not whole:
        return {}
    # MNIST's files have the same names and may lie beside these.
    best = min(whole, key=lambda x: ("fashion" not in str(x.relative_to(root)).lower(), x))
    return {name: folders[best][name] for name in NAMES}


def _remedy(more: str = "") -> str:
    files = ", ".join(f"{name}.gz" for name in NAMES)
    return (
        f"Set `folder` to a folder that has {files} (or the same unpacked). They are in the "
        f"Debian package {PACKAGE} and in the authors' repository. {more}".rstrip()
    )


def _fetch() -> None:
    """Fill the cache. Raises `DataError` that says what was tried."""
    console.print(f"Fetching Fashion-MNIST (about 30 MB) into {CACHE}/", highlight=False)
    tried = []
    for how, way in (("Debian's archive", _from_debian), ("torchvision", _from_torchvision)):
        try:
            CACHE.mkdir(parents=True, exist_ok=True)
            # On the cache's own file system, so that each file arrives whole or not at all.
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetch-") as folder:
                way(Path(folder))
                for path in _complete(Path(folder)).values():
                    path.replace(CACHE / path.name)
            if _complete(CACHE):
                return
            tried.append(f"{how}: the four files were not in what it gave")
        except (OSError, RuntimeError, HTTPException, subprocess.SubprocessError) as error:
            tried.append(f"{how}: {' '.join(str(error).split())}")
    places = f"looked in {INSTALLED} and {CACHE}/; " + "; ".join(tried)
    raise DataError(f"no Fashion-MNIST: {places}", _remedy())


def _from_debian(folder: Path) -> None:
    """Fetch the package and unpack it into `folder`: as any user, nothing is installed."""
    if missing := [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]:
        raise RuntimeError(f"no {' and no '.join(missing)} here")
    _call("apt-get", "download", PACKAGE, folder=folder)
    (package,) = folder.glob("*.deb")
    _call("dpkg", "-x", package.name, ".", folder=folder)


def _call(*command: str, folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"},  # the message below is looked for in English
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode == 0:
        return  # apt's warning that it works unsandboxed, as root, is no failure
    if "Unable to locate package" in done.stderr:
        raise RuntimeError("apt's package lists are missing (`apt-get update` fetches them)")
    said = " ".join(line for line in done.stderr.splitlines() if not line.startswith("W:"))
    raise RuntimeError(f"`{' '.join(command)}` failed: {said or done.returncode}")


def _from_torchvision(folder: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(folder, download=True)


def _read(found: Mapping[str, Path]) -> Raw:
    train, test = (_part(*(found[name] for name in NAMES[i : i + 2])) for i in (0, 2))
    return Raw(labels=LABELS, train=train, test=test)


def _part(images: Path, labels: Path) -> Part:
    pixels, numbers = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(numbers):
        what = f"{images} has {len(pixels)} images, but {labels} has {len(numbers)} labels"
        raise DataError(what, "Fetch the files again.")
    if len(numbers) and numbers.max() >= len(LABELS):
        what = f"{labels} has the label {numbers.max()}, but there are {len(LABELS)} classes"
        raise DataError(what, "Is it another set's file?")
    return Part(pixels[..., None], numbers.astype(np.int64))


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file: the magic number 0x8 and the dimensions, each length as big-endian uint32."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{dimensions + 1}I", raw)
        if magic != 0x800 + dimensions:
            raise ValueError(f"it begins with {magic:#x}, not with {0x800 + dimensions:#x}")
        return np.frombuffer(raw, np.uint8, offset=4 * (dimensions + 1)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"unreadable file: {path}: {error}", "Fetch it again.") from error
