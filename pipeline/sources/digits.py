"""The 1,797 handwritten digits that come with scikit-learn: for trying things out in seconds."""

import numpy as np

from pipeline.errors import require
from pipeline.machine import package_version
from pipeline.sources import Part, Raw, Source, Where


def find(where: Where) -> Source:
    """The digits are part of a package: there is nothing to look for."""
    del where
    return Source(
        title="scikit-learn digits",
        licence="CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
        fingerprint=f"scikit-learn {package_version('scikit-learn')}",
        read=_read,
    )


def _read() -> Raw:
    digits = require("sklearn.datasets", "digits").load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the package has 0..16
    labels = tuple(str(name) for name in digits.target_names)
    return Raw(labels=labels, train=Part(grey[..., None], digits.target.astype(np.int64)))
