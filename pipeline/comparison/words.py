"""What a comparison means, in sentences that the terminal, Markdown and HTML all print."""

from collections.abc import Callable, Iterator, Sequence

from benchmarks.stats import RESAMPLES
from pipeline.comparing import DRIFT, speed
from pipeline.comparison.build import Comparison
from pipeline.comparison.cells import ends, times
from pipeline.comparison.facts import Change, Pair, Ratio, RowPair, Run, Side
from pipeline.verdict import FEW_IMAGES
from pipeline.wording import Finding, enumerated, number, percent, points_interval, probability


def title(found: Comparison) -> str:
    """The runs, by letters and names."""
    return ", ".join(f"{run.letter} = {run.run}" for run in found.runs)


# ---- what is found ----


def headline(pair: Pair) -> Finding:
    """The file to ship of B against that of A, or what stands in for them, in a sentence, and what
    shows it."""
    row, a, b = pair.lead, pair.a, pair.b
    if row is None or row.top1 is None:
        told = f"{a.called} and {b.called} have no file or student whose accuracy both measured."
        return Finding(told, "")
    claims = [_accuracy(row.top1), _speed(row), _size(row.size)]
    claim = f"{_subject(pair, row)}: {', '.join(filter(None, claims))}."
    if row.same_file and not _mixed(pair, row):
        claim = f"{row.title} of {b.called} and of {a.called} are the same file, byte for byte."
    evidence = [
        *_stand_in(pair, row),
        f"Top-1 {percent(row.b.top1)} against {percent(row.a.top1)} %, 95 % interval of the "
        f"difference {points_interval(row.top1.ci95)} points, {_tested(row.top1, row, pair)}.",
    ]
    if row.latency.value is not None:
        around = f" ({ends(row.latency.ci95)})" if row.latency.ci95 else ""
        evidence.append(
            f"p50 {number(row.b.p50_ms)} against {number(row.a.p50_ms)} ms, "
            f"{times(row.latency)}{around}."
        )
    return Finding(claim, " ".join(evidence))


def _mixed(pair: Pair, row: RowPair) -> bool:
    """Whether `row` sets files of different kinds side by side."""
    return row is pair.shipped and pair.a.ships != pair.b.ships


def _subject(pair: Pair, row: RowPair) -> str:
    a, b = pair.a, pair.b
    if _mixed(pair, row):
        return (
            f"{b.ships} of {b.called} against {a.ships} of {a.called}, "
            "the files that they ship, of different kinds"
        )
    return f"{row.title} of {b.called} against that of {a.called}"


def _stand_in(pair: Pair, row: RowPair) -> Iterator[str]:
    """That `row` is not of the files to ship, and why."""
    if row is pair.shipped:
        return
    bare = [run.called for run in (pair.a, pair.b) if run.ships is None]
    lacking = f"{enumerated(bare)} {'have' if len(bare) > 1 else 'has'} no file to ship"
    why = lacking if bare else "what they ship cannot be set side by side"
    chosen = "the student" if row.role else "the most accurate file that both have"
    yield f"A stand-in, as {why}: {chosen}."


def _accuracy(change: Change) -> str:
    if not change.certain:
        return "no certain difference in accuracy"
    way = "more" if change.difference > 0 else "less"
    return f"{abs(100 * change.difference):.2f} points {way} accurate"


def _speed(row: RowPair) -> str:
    if row.faster is None or row.latency.value is None:
        return ""
    verb, claim = speed(row.faster, row.latency.value, row.latency.ci95)
    return f"takes {claim}" if verb == "takes" else claim


def _size(ratio: Ratio) -> str:
    if ratio.value is None:
        return ""
    return "the same size" if times(ratio) == "1.00×" else f"{times(ratio)} the size"


def _tested(change: Change, row: RowPair, pair: Pair) -> str:
    a, b = pair.a, pair.b
    if change.mcnemar_p is None:
        return f"unpaired ({row.b.n:,} and {row.a.n:,} test images)"
    return (
        f"paired over {_images(row.a.n or 0)}: {change.only_b:,} that only {b.letter} names "
        f"rightly, {change.only_a:,} that only {a.letter} (McNemar {probability(change.mcnemar_p)})"
    )


# ---- doubts and notes ----


def doubts(found: Comparison) -> list[str]:
    """What a reader must know before believing the figures."""
    told = [line for pair in found.pairs for line in _doubts(pair, found.across_hosts)]
    noisy = dict.fromkeys(
        f"{title} of {run.letter}"
        for pair in found.pairs
        for run, title, side in _sides(pair)
        if side.noisy
    )
    if noisy:
        told.append(f"The host was too noisy to time {enumerated(list(noisy))}.")
    return told


def _rows(pair: Pair) -> list[RowPair]:
    """What both have, and what they ship where that is of different kinds."""
    other = pair.shipped
    return [*pair.rows, *([other] if other and _mixed(pair, other) else [])]


def _sides(pair: Pair) -> Iterator[tuple[Run, str | None, Side]]:
    """Run, title and figures of each of them."""
    for row in _rows(pair):
        mixed = _mixed(pair, row)
        yield pair.a, pair.a.ships if mixed else row.title, row.a
        yield pair.b, pair.b.ships if mixed else row.title, row.b


def _doubts(pair: Pair, across_hosts: bool) -> Iterator[str]:
    a, b = pair.a, pair.b
    names = f"{a.letter} and {b.letter}"
    if not pair.same_images:
        yield (
            f"{names} were tested on different images ({_tested_on(a)}; {_tested_on(b)}): their "
            "accuracies are compared unpaired, and the difference may be one of the images."
        )
    if (a.size, a.channels) != (b.size, b.channels):
        yield f"{names} take different images: {_taken(a)} and {_taken(b)}."
    yield from _refusals(pair, names, across_hosts)
    counts = [side.n for row in _rows(pair) for side in (row.a, row.b) if side.n]
    if counts and min(counts) < FEW_IMAGES:
        few = _images(min(counts))
        yield f"Only {few}: every accuracy of {names} is uncertain by several points."


def _images(count: int) -> str:
    return f"{count:,} test image{'s' * (count != 1)}"


def _tested_on(run: Run) -> str:
    return f"{run.letter}: {run.test_images:,} of {run.source}"


def _taken(run: Run) -> str:
    return f"{run.size} × {run.size} pixels, {'grey' if run.channels == 1 else 'RGB'}"


def _refusals(pair: Pair, names: str, across_hosts: bool) -> Iterator[str]:
    """What is not compared, or is all the same as --across-hosts asks."""
    rows = _rows(pair)
    held = [row for row in rows if _both(row.memory)]
    timed = [row for row in rows if row in held or _both(row.latency) or _both(row.load)]
    apart = _by(timed, lambda row: row.apart)
    runtimes = _by([row for row in held if across_hosts or not row.apart], lambda row: row.runtimes)
    for why, titles in apart:
        asked = f"Times and memory of {names} are compared as --across-hosts asks, though"
        refused = f"Latencies of {names} are not compared, nor load times and memory:"
        yield f"{asked if across_hosts else refused} {why}{titles}."
    for why, titles in runtimes:
        asked = f"Memory of {names} is compared as --across-hosts asks, though"
        refused = f"Peak memory of {names} is not compared:"
        yield f"{asked if across_hosts else refused} {why}{titles}."


def _both(ratio: Ratio) -> bool:
    """Whether both runs have the figure."""
    return ratio.value is not None or ratio.refused


def _by(rows: Sequence[RowPair], reason: Callable[[RowPair], str | None]) -> list[tuple[str, str]]:
    """The reasons of `rows`, each with the titles it is of; "" where that is all of them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if why := reason(row):
            found.setdefault(why, []).append(row.title)
    return [
        (why, "" if len(titles) == len(rows) else f" ({', '.join(titles)})")
        for why, titles in found.items()
    ]


def methods(found: Comparison) -> list[str]:
    """How the intervals came about, said once for all pairs."""
    rows = [row for pair in found.pairs for row in _rows(pair)]
    told = []
    if paired := [row.top1 for row in rows if row.top1 and row.top1.paired]:
        told.append(
            "Paired differences are over the same test images. p is McNemar’s, exact; the 95 % "
            f"interval is Bonett and Price’s, the bootstrap’s is of {RESAMPLES:,} resampled test "
            "sets. Each is its row’s own: of twenty rows without a difference about one may show p "
            "below 0.05 by chance. They tell two trained files apart, not two recipes: another "
            "seed trains another file."
        )
        if any(change.only_a == change.only_b == 0 for change in paired):
            told.append(
                "Where the two never disagree p is 1 and there is nothing to resample; the "
                "interval is that of one disagreement either way more than was seen."
            )
    if any(row.top1 and not row.top1.paired for row in rows):
        told.append("The 95 % interval of an unpaired difference is Newcombe’s, without a p.")
    if any(row.latency.ci95 for row in rows):
        told.append("The interval of a ratio of p50 is that of the two processes.")
    if any(row.latency.value for row in rows):
        low, high = DRIFT
        told.append(
            "A host drifts between two runs, which is in no interval: a ratio of p50 from "
            f"{low:.2f} to {high:.2f} is taken for no difference. python -m benchmarks compare, "
            "and the gate with in_turn = true, time files in turn."
        )
    if any(row.latency.value and not row.latency.ci95 for row in rows):
        told.append("Where a p50 has no interval of its own, its ratio has none.")
    return told


def notes(pair: Pair) -> list[str]:
    """What is not paired or is missing and why, and what was trained."""
    return [
        *_unpaired(pair),
        *_missing(pair),
        *_alone(pair),
        *(f"{run.letter}: {run.student}" for run in (pair.a, pair.b) if run.student),
    ]


def _unpaired(pair: Pair) -> Iterator[str]:
    def why(row: RowPair) -> str | None:
        if row.top1 is None or row.top1.paired:
            return None
        if not pair.same_images:
            return "the test images differ"
        counts = "the numbers of test images differ"
        return counts if row.a.n != row.b.n else "answers were not kept"

    for reason, titles in _by([row for row in _rows(pair) if row.top1], why):
        yield f"Differences are unpaired{titles}: {reason}."


def _missing(pair: Pair) -> Iterator[str]:
    """Why rows have no accuracy or no latency, in which of the runs."""
    found: dict[str, dict[str, None]] = {}
    for row in pair.rows:
        reasons: dict[str, list[str]] = {}
        for run, side in ((pair.a, row.a), (pair.b, row.b)):
            values = {"top-1": side.top1, "latency": side.p50_ms}
            if lacking := [name for name, value in values.items() if value is None]:
                why = f"no {enumerated(lacking, 'or')}: {side.skipped or 'no reason given'}"
                reasons.setdefault(why, []).append(run.letter)
        for why, letters in reasons.items():
            found.setdefault(f"in {enumerated(letters)} {why}", {})[row.title] = None
    for why, titles in found.items():
        yield f"{enumerated(list(titles))}: {why}"


def _alone(pair: Pair) -> Iterator[str]:
    for run, titles in ((pair.a, pair.only_a), (pair.b, pair.only_b)):
        if titles:
            yield f"Only in {run.letter}: {', '.join(titles)}."
