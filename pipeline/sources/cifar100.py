"""CIFAR-100: CIFAR-10's sister with a hundred classes."""

from pipeline.sources import Source, Where
from pipeline.sources.cifar10 import find_cifar


def find(where: Where) -> Source:
    """CIFAR-100 below `where.folder` or ``data/``."""
    return find_cifar("CIFAR100", where)
