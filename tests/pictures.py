"""Small image sets that a network can learn within seconds, for tests of the whole pipeline."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bars", "dots", "rings")


def picture(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A noisy grey picture of stripes, a grid of dots or rings, uint8 [size, size]."""
    y, x = np.mgrid[0:size, 0:size] + rng.uniform(0, 4, (2, 1, 1))
    wave = {
        "bars": np.sin(x * 1.5),
        "dots": np.sin(x * 1.5) * np.sin(y * 1.5),
        "rings": np.sin(np.hypot(x - size / 2, y - size / 2) * 1.5),
    }[kind]
    noisy = 128 + 80 * wave + rng.normal(0, 25, (size, size))
    return noisy.clip(0, 255).astype(np.uint8)


def make_set(
    root: Path, train: int = 40, test: int = 10, size: int = 16, classes: int = len(CLASSES)
) -> Path:
    """`root`/train/<class> and `root`/test/<class> with that many images of each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for kind in CLASSES[:classes]:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(kind, rng, size)).save(folder / f"{number:04d}.png")
    return root
