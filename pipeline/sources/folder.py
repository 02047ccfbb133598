"""A user's own images: one folder a class, with or without train/ and test/ above them.

Classes are numbered in the order of their folders' names: by code point ("Zebra" before "ant"), but
as numbers where every name is one (9 before 10). A trained network's outputs come in that order.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.images import IMAGE_SUFFIXES
from pipeline.sources import File, Part, Raw, Source, Where, fingerprint, listed, walk

SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What a folder's name, in lower case, says of the split in it."""

Classes = Mapping[str, Sequence[str]]
"""Class name -> its files, relative to the root."""
LAYOUT = (
    "Lay the images out as <folder>/train/<class>/... and <folder>/test/<class>/..., "
    "or as <folder>/<class>/... to have them split by chance."
)


def find(where: Where) -> Source:
    """The images below `where.folder`."""
    if where.folder is None:
        raise DataError('source = "folder" needs `folder`', "Set it to where the images are.")
    root = where.folder.expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"folder {root} {what} (looked for {root.absolute()})",
            "Set `folder` to where the images are; a relative path counts from the current folder.",
        )
    files = [file for file in walk(root) if _is_image(file.name)]
    return Source(
        title=f"folder {where.folder}{_how_split(_layout(root))}",
        licence="unknown",
        # With the place, because a streamed set's record names its files in full.
        fingerprint=fingerprint(files, str(root.resolve()), *_subfolders(root)),
        read=partial(_read, root, files),
    )


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def _subfolders(folder: Path) -> list[str]:
    return sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name[0] != ".")


def _read(root: Path, files: Sequence[File]) -> Raw:
    if not files:
        raise DataError(
            f"no images in {root} (looked for {listed(sorted(IMAGE_SUFFIXES))})", LAYOUT
        )
    splits = _layout(root)
    classes = {split: _classes(root, folder, files) for split, folder in splits.items()}
    labels = _agreed_labels(root, {splits[name]: found for name, found in classes.items()})
    parts = {name: _part(root, found, labels) for name, found in classes.items()}
    return Raw(labels=labels, train=parts["train"], test=parts.get("test"), val=parts.get("val"))


def _layout(root: Path) -> dict[str, str]:
    """The folder that holds each split, relative to `root`; "" is the root itself.

    A class may be called "train": then there are no folders in it, but other classes beside it.
    """
    top = _subfolders(root)
    named: dict[str, list[str]] = {}
    for name in top:
        if split := SPELLINGS.get(name.lower()):
            named.setdefault(split, []).append(name)
    only_splits = bool(top) and all(name.lower() in SPELLINGS for name in top)
    if not only_splits and not any(_subfolders(root / name) for name in named.get("train", ())):
        return {"train": ""}
    if "train" not in named:
        raise DataError(f"{root} has {_folders(top)}, but no train/", LAYOUT)
    for names in named.values():
        if len(names) > 1:
            raise DataError(f"{root} has {_folders(names)}", "Keep one of them.")
    splits = {split: names[0] for split, names in named.items()}
    if "val" in splits and "test" not in splits:
        # As with ImageNet: what was published is the final test, and validation is cut from train.
        splits["test"] = splits.pop("val")
    return {split: splits[split] for split in ("train", "test", "val") if split in splits}


def _folders(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def _how_split(splits: Mapping[str, str]) -> str:
    """What a reader of the report should know of the splits; nothing where they are as named."""
    if "test" not in splits:
        return ", test split cut by seed"
    name = splits["test"]
    return "" if SPELLINGS[name.lower()] == "test" else f", {name}/ as the test split"


def _classes(root: Path, split: str, files: Iterable[File]) -> Classes:
    """The classes of a split, with the empty ones; images outside any class folder are left out."""
    names = _subfolders(root / split)
    found: dict[str, list[str]] = {_class_name(root / split, name): [] for name in names}
    prefix = f"{split}/" if split else ""
    for file in files:
        name, slash, _ = file.name.removeprefix(prefix).partition("/")
        if slash and file.name.startswith(prefix):
            found[_class_name(root / split, name)].append(file.name)
    if not found:
        raise DataError(f"no class folders in {root / split}", LAYOUT)
    return found


def _class_name(folder: Path, name: str) -> str:
    """One spelling a name: macOS takes "é" apart, others do not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"the name of a class folder in {folder} is not UTF-8: {name!r}", "Rename it."
        ) from None
    return unicodedata.normalize("NFC", name)


def _agreed_labels(root: Path, splits: Mapping[str, Classes]) -> tuple[str, ...]:
    first = next(iter(splits))
    train = splits[first]
    for split, classes in splits.items():
        where = f"{root / split}"
        if empty := [name for name, files in classes.items() if not files]:
            raise DataError(
                f"no images in {where} for: {listed(sorted(empty))}",
                "Add images or remove the folder.",
            )
        only_train, only_here = sorted(set(train) - set(classes)), sorted(set(classes) - set(train))
        if only_train or only_here:
            raise DataError(
                f"the classes in {root / first} and {where} differ: "
                f"only in {first}: {listed(only_train) or 'none'}; "
                f"only in {split}: {listed(only_here) or 'none'}",
                "Every class needs a folder with images in both.",
            )
    numbers = all(name.isascii() and name.isdecimal() for name in train)
    return tuple(sorted(train, key=(lambda name: (int(name), name)) if numbers else None))


def _part(root: Path, classes: Classes, labels: Sequence[str]) -> Part:
    base = root.absolute()
    files = [base / name for label in labels for name in classes[label]]
    counts = [len(classes[label]) for label in labels]
    return Part(files, np.repeat(np.arange(len(labels), dtype=np.int64), counts))
