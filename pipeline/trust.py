"""What a network's confidence is worth, in words and table rows."""

from pipeline.answers import by_name, change_line, class_lines
from pipeline.confidence import BINS, Bin, Confidence
from pipeline.summary import Report
from pipeline.wording import NONE, interval, number, percent, points, points_interval

BINNED = ("student", "int8")
"""Whose bins are shown."""


def assessed(report: Report) -> dict[str, tuple[str, Confidence]]:
    """Whose confidence was assessed: by role or "int8", a name for people and what was found."""
    return {
        name: (row.title if name == "int8" else name, row.confidence)
        for name, row in by_name(report).items()
        if row.confidence is not None
    }


def confidence_rows(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each network its mean confidence, top-1, the difference, ECE, that of chance, NLL; an
    interval beside each where there is one."""
    return [
        (
            title,
            [
                (percent(found.mean), ""),
                (percent(found.mean - found.over), ""),
                (points(found.over), points_interval(found.over_ci95)),
                (percent(found.ece), interval(found.ece_ci95)),
                (percent(found.ece_by_chance), ""),
                (number(found.nll), ""),
            ],
        )
        for title, found in assessed(report).values()
    ]


def confidence_lines(report: Report) -> list[str]:
    """Whether student and int8 are surer than they are right."""
    found = assessed(report)
    return [_believed(*found[name]) for name in BINNED if name in found]


def _believed(title: str, found: Confidence) -> str:
    name = title if title != "student" else "The student"
    low, high = found.over_ci95
    size, known = f"{abs(100 * found.over):.2f} points", points_interval(found.over_ci95)
    ways = {True: f"over-confident by {size}", False: f"under-confident by {size}"}
    way = ways[found.over > 0] if low > 0 or high < 0 else "not certainly over- or under-confident"
    text = (
        f"{name} is {way} (95 % interval {known} points): its mean confidence is "
        f"{percent(found.mean)} %, and it is right on {percent(found.mean - found.over)} %. "
        f"Its calibration error (ECE) is {percent(found.ece)} %, 95 % interval "
        f"{interval(found.ece_ci95)}; "
    )
    chance = f"a perfectly calibrated network would show {percent(found.ece_by_chance)} %"
    images = f"{found.n:,} image{'s' * (found.n != 1)}"
    doubt = "" if found.ece_ci95[0] > 0 else ": chance may explain it"
    return f"{text}{chance} with {images}{doubt}."


def bin_rows(report: Report) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """For each bin of confidence its limits; of student and int8 images, mean confidence, top-1."""
    found = assessed(report)
    told = [
        {round(each.low * BINS): each for each in found[name][1].bins}
        for name in BINNED
        if name in found
    ]
    places = sorted({place for bins in told for place in bins})
    return [
        (
            f"{percent(place / BINS)}–{percent((place + 1) / BINS)}",
            [_bin_cells(bins.get(place)) for bins in told],
        )
        for place in places
    ]


def _bin_cells(found: Bin | None) -> tuple[str, str, str]:
    if found is None:
        return "0", NONE, NONE
    top1 = f"{percent(found.top1)} ({interval(found.top1_ci95)})"
    return f"{found.n:,}", percent(found.confidence), top1


def lines(report: Report) -> list[str]:
    """What every page and the terminal say of the answers."""
    told = (change_line(report), *class_lines(report), *confidence_lines(report))
    return [line for line in told if line]
