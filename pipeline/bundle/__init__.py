"""The bundle: runs/<name>/bundle, what an app team gets and can trust.

The files by platform, and beside them what it takes to trust and to use them: checksums, the
contract, what was measured (`manifest`), test images with the answers to expect (`golden`), a
script that compares them on any machine, a model card and a snippet of code a platform.
"""

from pipeline.bundle.layout import place, placed, places
from pipeline.bundle.manifest import Manifest, check, read
from pipeline.bundle.writing import VERSION, write, write_bare

__all__ = [
    "VERSION",
    "Manifest",
    "check",
    "place",
    "placed",
    "places",
    "read",
    "write",
    "write_bare",
]
