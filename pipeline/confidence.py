"""How far a classifier's confidence can be believed: calibration, from its answers to a test split.

An app that asks for a second look below 80 % needs 80 % to mean that. Not to be mixed up with
`quantization.calibration`, which finds the ranges of int8. Nothing here needs torch.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.special import log_softmax

from benchmarks.stats import Z95, Interval, wilson
from pipeline.records import Record

Output = Literal["logits", "probabilities"]
BINS = 15
"""Of equal width, as Guo et al. took; bin m holds the confidences in ((m - 1) / 15, m / 15]."""
LEAST = 1e-6
"""Probabilities below it, some of which float16 makes 0, count as it."""
DRAWS = 500
"""Of what chance may have been."""
BLOCK = 4096
"""Images taken up at a time: a large test split with many classes is larger than it need be."""


class Bin(Record):
    """The images whose confidence lies between two limits."""

    model_config = ConfigDict(extra="ignore")

    low: float
    high: float
    n: int
    confidence: float
    """Mean."""
    top1: float
    top1_ci95: tuple[float, float]
    """Wilson's."""


class Confidence(Record):
    """What a network's confidences, each the largest of an image's probabilities, are worth."""

    model_config = ConfigDict(extra="ignore")

    n: int
    """Images."""
    mean: float
    """Mean confidence."""
    over: float
    """Mean confidence minus top-1: above 0 it claims more than it is right."""
    over_ci95: tuple[float, float]
    """Paired by image; see `_over_interval`."""
    ece: float
    """Expected calibration error, in 0..1."""
    ece_ci95: tuple[float, float]
    ece_by_chance: float
    """What a perfectly calibrated network with these confidences would show on average."""
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    bins: tuple[Bin, ...]
    """Those of the 15 that hold an image."""


def assess(
    answers: NDArray[np.floating], labels: NDArray[np.integer], output: Output = "logits"
) -> Confidence | None:
    """What the confidences in `answers` [n, classes] are worth; None where some are no numbers.

    ECE is equation 3 of Guo et al., ICML 2017: over the bins, the mean of |mean confidence -
    top-1|, weighted by their images. It errs upwards, for the noise of a bin never cancels: see
    `ece_by_chance`. Its interval is in `_ece_interval`.

    Raises ValueError where there are no images, or not one label for each.
    """
    if answers.ndim != 2 or not len(answers) or len(answers) != len(labels):
        raise ValueError(f"{answers.shape} answers do not belong to {len(labels)} labels")
    told = list(_by_block(answers, labels, output))
    sure, right, loss = (np.concatenate(parts) for parts in zip(*told, strict=True))
    if not np.isfinite(sure).all() or not np.isfinite(loss).all():
        return None
    n, bins = len(labels), bin_of(sure)
    apart = sure - right
    ece = float(np.abs(np.bincount(bins, apart, BINS)).sum() / n)
    chance = _by_chance(sure, bins)
    return Confidence(
        n=n,
        mean=float(sure.mean()),
        over=float(apart.mean()),
        over_ci95=_over_interval(sure, right),
        ece=ece,
        ece_ci95=_ece_interval(ece, sure, right, bins, chance),
        ece_by_chance=float(chance.mean()),
        nll=float(loss.mean()),
        bins=tuple(_bins(sure, right, bins)),
    )


def _over_interval(sure: NDArray[np.float64], right: NDArray[np.float64]) -> Interval:
    """95 % interval of mean confidence minus top-1 (Zou 2007, Psychological Methods 12:399).

    From the normal interval of the one, Wilson's of the other and their correlation: unlike a
    normal interval of the difference it has a width where every image is named rightly.
    """
    n, top1, over = len(sure), float(right.mean()), float((sure - right).mean())
    low, high = wilson(round(right.sum()), n)
    own = Z95 * float(sure.std()) / n**0.5
    varies = sure.std() > 0 and 0 < top1 < 1
    same = float(np.corrcoef(sure, right)[0, 1]) if varies else 0.0

    def reach(other: float) -> float:
        return float(max(0.0, own**2 + other**2 - 2 * same * own * other)) ** 0.5

    return over - reach(high - top1), over + reach(top1 - low)


def bin_of(confidence: NDArray[np.floating]) -> NDArray[np.intp]:
    """The bin, from 0, of each confidence."""
    return np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)


def probabilities(answers: NDArray[np.floating], output: Output) -> NDArray[np.float64]:
    """The probabilities [n, classes] that `answers` are or mean."""
    return _wide(answers) if output == "probabilities" else np.exp(_logs(answers, output))


def _wide(answers: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(answers, dtype=np.float64)


def _logs(answers: NDArray[np.floating], output: Output) -> NDArray[np.float64]:
    if output == "probabilities":
        return np.log(np.maximum(_wide(answers), LEAST))
    with np.errstate(invalid="ignore"):  # answers that are no numbers stay none
        return log_softmax(_wide(answers), axis=1)


def _by_block(
    answers: NDArray[np.floating], labels: NDArray[np.integer], output: Output
) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Confidence, whether it is right, and the loss of each image, a block after the other."""
    for start in range(0, len(labels), BLOCK):
        given, truth = answers[start : start + BLOCK], labels[start : start + BLOCK]
        each, named = np.arange(len(truth)), np.argmax(given, axis=1)
        sure = probabilities(given, output)[each, named]
        yield sure, (named == truth).astype(np.float64), -_logs(given, output)[each, truth]


def _bins(
    sure: NDArray[np.float64], right: NDArray[np.float64], bins: NDArray[np.intp]
) -> Iterator[Bin]:
    counts = np.bincount(bins, minlength=BINS)
    sums, hits = np.bincount(bins, sure, BINS), np.bincount(bins, right, BINS)
    for at in np.flatnonzero(counts):
        n = int(counts[at])
        yield Bin(
            low=at / BINS,
            high=(at + 1) / BINS,
            n=n,
            confidence=float(sums[at] / n),
            top1=float(hits[at] / n),
            top1_ci95=wilson(round(hits[at]), n),
        )


def _by_chance(sure: NDArray[np.float64], bins: NDArray[np.intp]) -> NDArray[np.float64]:
    """ECE of perfectly calibrated networks: images right as often as they say, drawn anew.

    The consistency resampling of Bröcker & Smith 2007, Weather and Forecasting 22:651. With the
    confidences as they are; the seed is fixed.
    """
    rng, n = np.random.default_rng(0), len(sure)
    drawn = np.empty(DRAWS)
    for at in range(DRAWS):
        apart = sure - (rng.random(n) < sure)
        drawn[at] = np.abs(np.bincount(bins, apart, BINS)).sum() / n
    return drawn


def _ece_interval(
    ece: float,
    sure: NDArray[np.float64],
    right: NDArray[np.float64],
    bins: NDArray[np.intp],
    chance: NDArray[np.float64],
) -> Interval:
    """95 % interval of the ECE that many more such images would show.

    Each bin's top-1 is drawn from its posterior with Jeffreys' prior, Beta(hits + 1/2, misses +
    1/2), which stays uncertain where a bin is all right or all wrong. Like a bootstrap, such draws
    repeat the upward error that ECE has already. So the upper end is kept, the lower one is that
    end reflected about `ece` (the basic bootstrap, Davison & Hinkley 1997, section 5.2), and 0
    where more than 5 % of calibrated networks show as much by chance. tests/test_confidence.py
    holds it to 85 % and more, on two sorts of networks with 400 images: calibrated ones, and ones
    over-confident throughout. It may cover less, as with fewer images, or where errors of both
    signs lie in one bin.
    """
    rng, n = np.random.default_rng(0), len(sure)
    counts, sums = np.bincount(bins, minlength=BINS), np.bincount(bins, sure, BINS)
    hits = np.bincount(bins, right, BINS)
    top1 = rng.beta(hits + 0.5, counts - hits + 0.5, (DRAWS, BINS))
    low, high = np.percentile(np.abs(sums - counts * top1).sum(axis=1) / n, (2.5, 97.5))
    least = 0.0 if ece <= np.percentile(chance, 95) else min(2 * ece - high, low, ece)
    return max(0.0, float(least)), min(1.0, max(ece, float(high)))
