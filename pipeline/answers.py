"""What the networks answer, class by class and image by image, in words and table rows."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from benchmarks.stats import Interval, PairedDifference, wilson
from pipeline import confusions
from pipeline.comparing import AnyRow
from pipeline.disagreements import SMALL, Said
from pipeline.records import Role
from pipeline.summary import Report
from pipeline.verdict import lead_int8
from pipeline.wording import (
    NONE,
    enumerated,
    percent,
    points,
    points_interval,
)

T = TypeVar("T")

NAMED = 5
"""Classes that a sentence names."""
CONFUSIONS = 10
"""Rows of the table of confusions."""
DRAWN = 30
"""Classes up to which the whole confusion matrix is shown."""


# ---- by class ----


class ClassRow(NamedTuple):
    """One class; shares and differences of shares."""

    label: str
    n: int | None
    """Test images."""
    teacher: float | None
    student: float | None
    precision: float | None
    """The student's."""
    int8: float | None
    int8_precision: float | None
    gain: float | None
    """Student minus baseline."""
    gain_ci95: Interval | None
    change: float | None
    """int8 minus student."""
    change_ci95: Interval | None


def class_rows(report: Report) -> list[ClassRow]:
    """Every class, what int8 loses most first."""
    top1 = {name: row.class_top1 for name, row in by_name(report).items() if row.class_top1}
    if not top1:
        return []
    precision = {name: row.class_precision or () for name, row in by_name(report).items()}
    counts, rows = report.dataset.class_counts or (), []
    for at, label in enumerate(report.labels):
        teacher, baseline, student, int8 = (
            _at(top1.get(name, ()), at) for name in ("teacher", "baseline", "student", "int8")
        )
        gain, change = (_at(each, at) for each in (report.class_gains, report.class_changes))
        row = ClassRow(
            label=label,
            n=_at(counts, at),
            teacher=teacher,
            student=student,
            precision=_at(precision.get("student", ()), at),
            int8=int8,
            int8_precision=_at(precision.get("int8", ()), at),
            gain=_minus(student, baseline),
            gain_ci95=gain and gain.ci95,
            change=_minus(int8, student),
            change_ci95=change and change.ci95,
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (row.change is None, row.change or 0))


def by_name(report: Report) -> dict[str, AnyRow]:
    """The networks by their roles, and the int8 file that is spoken of first."""
    found: dict[str, AnyRow] = {row.role: row for row in report.models}
    int8 = lead_int8(report)
    return found | ({"int8": int8} if int8 else {})


def _at(values: Sequence[T], index: int) -> T | None:
    return values[index] if index < len(values) else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def class_noise(report: Report) -> tuple[int, float] | None:
    """A typical class's number of test images, and half the width of the 95 % interval that its
    top-1 would have there if it were the student's."""
    student, counts = report.model("student"), report.dataset.class_counts
    if not counts or student is None or student.top1 is None:
        return None
    typical = sorted(counts)[len(counts) // 2]
    if not typical:
        return None
    low, high = wilson(round(student.top1 * typical), typical)
    return typical, (high - low) / 2


def class_columns(rows: Sequence[ClassRow]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The columns of a table of `rows` that have something to say: head, and each cell with the
    interval below it."""

    def share(name: str) -> list[tuple[str, str]]:
        return [(percent(getattr(row, name)), "") for row in rows]

    def apart(name: str) -> list[tuple[str, str]]:
        found = [(getattr(row, name), getattr(row, f"{name}_ci95")) for row in rows]
        return [
            (NONE if value is None else points(value), points_interval(ends) if ends else "")
            for value, ends in found
        ]

    heads = {
        "Student %": share("student"),
        "Student − baseline, points": apart("gain"),
        "int8 %": share("int8"),
        "int8 − student, points": apart("change"),
        "Student’s precision %": share("precision"),
        "int8’s precision %": share("int8_precision"),
        "Teacher %": share("teacher"),
    }
    return [(head, cells) for head, cells in heads.items() if any(c[0] != NONE for c in cells)]


def class_lines(report: Report) -> list[str]:
    """In which classes distillation and int8 made a difference that is no chance."""
    int8 = lead_int8(report)
    told = (
        ("distillation", "student and baseline", report.class_gains),
        (int8.title if int8 else "", "int8 and student", report.class_changes),
    )
    return [_certainly(report.labels, *each) for each in told if any(each[2])]


def _certainly(
    labels: Sequence[str], who: str, between: str, found: Sequence[PairedDifference | None]
) -> str:
    tested = sum(each is not None for each in found)
    how = f" (McNemar’s exact test{f' in each, Holm’s correction for {tested:,}' * (tested > 1)})"
    certain = confusions.certain(found)
    told = [(each.difference, labels[at]) for at in certain if (each := found[at])]
    gained = sorted((one for one in told if one[0] > 0), key=lambda one: -one[0])
    lost = sorted((one for one in told if one[0] < 0), key=lambda one: one[0])
    claims = [
        f"{verb} in {_few(side)}" for verb, side in (("gains", gained), ("loses", lost)) if side
    ]
    if not claims:
        return f"In no class is the difference between {between} certain{how}."
    rest = tested - len(told)
    other = f"{rest:,}" if rest > 1 else "class"
    others = f"; in the other {other} the difference may be chance" if rest else ""
    return f"By class, {who} {enumerated(claims)}{others}{how}."


def _few(told: Sequence[tuple[float, str]]) -> str:
    """The first of them by name, and how many more there are."""
    names = [f"{label} ({points(size)} points)" for size, label in told[:NAMED]]
    more = len(told) - len(names)
    return enumerated([*names, *([f"{more:,} more"] if more else [])])


def change_line(report: Report) -> str:
    """On how many images int8 answers otherwise than the student, and which of the two is right."""
    student, int8 = report.model("student"), lead_int8(report)
    if student is None or int8 is None or int8.agreement is None or int8.n is None:
        return ""
    before, after = student.correctness(), int8.correctness()
    if before is None or after is None:
        return ""
    n = round((1 - int8.agreement) * int8.n)
    spoilt, mended = int((before & ~after).sum()), int((after & ~before).sum())
    share = f"{n:,} of {int8.n:,} test images ({percent(n / int8.n)} %)"
    if not n:
        return f"{int8.title} names the student’s class on all {int8.n:,} test images."
    return (
        f"{int8.title} names another class than the student on {share}: on {spoilt:,} of them the "
        f"student is right, on {mended:,} {int8.title} is, on {n - spoilt - mended:,} neither."
    )


# ---- what is taken for what ----


def confusion_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """True class, class named, images of the student, their share of the class, images of int8."""
    student, int8 = report.model("student"), lead_int8(report)
    if student is None or student.confusions is None:
        return []
    of_int8 = {}
    if int8 is not None and int8.confusions is not None:
        of_int8 = {cell[:2]: cell.n for cell in int8.confusions.most(len(report.labels) ** 2)}
    # Of many classes the rarer confusions are not known; of few a missing one is none.
    missing = NONE if int8 is None or not int8.confusions or not int8.confusions.counts else "0"
    counts = report.dataset.class_counts or ()
    return [
        (
            report.labels[cell.truth],
            report.labels[cell.named],
            f"{cell.n:,}",
            percent(cell.n / (_at(counts, cell.truth) or 0)) if _at(counts, cell.truth) else NONE,
            f"{of_int8[cell[:2]]:,}" if cell[:2] in of_int8 else missing,
        )
        for cell in student.confusions.most(CONFUSIONS)
    ]


def confusion_line(report: Report) -> str:
    """What the student takes for what most often."""
    student, rows = report.model("student"), confusion_rows(report)
    if student is None or student.confusions is None:
        return ""
    if not rows:
        return "The student names no test image wrongly."
    wrong, (truth, named, n, share, _) = student.confusions.wrong, rows[0]
    shown = sum(cell.n for cell in student.confusions.most(CONFUSIONS))
    return (
        f"Of {truth} the student names {n} as {named} ({share} %): its most frequent confusion. "
        f"The {len(rows)} below are {percent(shown / wrong)} % of its {wrong:,} wrong answers."
    )


def matrices(report: Report) -> list[tuple[str, tuple[tuple[int, ...], ...]]]:
    """Whole confusion matrices of few classes: whose, and the counts."""
    found = ((name, row.confusions) for name, row in by_name(report).items())
    return [
        (name, each.counts)
        for name, each in found
        if each is not None and each.counts is not None and len(each.counts) <= DRAWN
    ]


# ---- images they disagree on ----


class PictureRow(NamedTuple):
    """One image, to be looked at."""

    image: str | None
    small: bool
    """Whether its pixels are to be seen one by one."""
    truth: str
    alt: str
    said: list[tuple[str, str, str, bool]]
    """Who, the class named, its confidence in per cent, whether it is right."""


def picture_rows(report: Report) -> list[PictureRow]:
    """The images that teacher, student and int8 name differently, as far as they are shown."""
    found = report.disagreements
    return [
        PictureRow(
            image=each.image,
            small=report.input.size <= SMALL,
            truth=report.labels[each.truth],
            alt=f"Test image {each.index}: {report.labels[each.truth]}",
            said=[
                (who, report.labels[said.named], _sure(said), said.named == each.truth)
                for who, said in each.said.items()
            ],
        )
        for each in (found.shown if found else ())
    ]


def _sure(said: Said) -> str:
    return NONE if said.confidence is None else f"{100 * said.confidence:.0f} %"


def pictures_line(report: Report) -> str:
    """How many images there are on which not all agree, and which of them are shown."""
    found = report.disagreements
    if found is None:
        return ""
    roles: tuple[Role, ...] = ("teacher", "student")
    asked = [row.role for role in roles if (row := report.model(role)) and row.top1 is not None]
    names = enumerated([*asked, *([found.int8] if found.int8 else [])])
    if not found.n:
        return f"{names[0].upper()}{names[1:]} name the same class on every test image."
    few = "" if len(found.shown) == found.n else f" {len(found.shown)} are shown."
    return (
        f"{names[0].upper()}{names[1:]} do not all name the same class on {found.n:,} test "
        f"image{'s' * (found.n != 1)}.{few}"
    )


def pictures_order(report: Report) -> str:
    """Which of the images shown come first."""
    found = report.disagreements
    if found is None or not found.shown:
        return ""
    others = [name for name in ("int8", "teacher") if name in found.shown[0].said]
    if len(others) < 2:
        return "Those that the student is surest of come first."
    return (
        "Those that int8 names otherwise than the student come first, then those that the teacher "
        "does, of each the ones that the student is surest of."
    )
