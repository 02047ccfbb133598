"""MODEL_CARD.md: what the files are, how good each was found, and what nobody tried."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.stats import wilson
from pipeline import answers, elsewhere, precision, timings, verdict, wording
from pipeline.bundle.manifest import Manifest
from pipeline.bundle.snippets import SNIPPETS, texts
from pipeline.summary import Report
from pipeline.templating import MARKDOWN
from pipeline.wording import LONG, interval, percent

FILE = "MODEL_CARD.md"
FILTERS = ("number", "percent", "interval", "megabytes", "network")


class ClassRow(NamedTuple):
    """How well one class is named."""

    label: str
    n: str
    student: str
    student_ci95: str
    int8: str
    int8_ci95: str


def write(report: Report, manifest: Manifest, bundle: Path) -> None:
    """Write the card of the bundle in that folder."""
    text = to_markdown(report, manifest, list(_there(bundle)))
    (bundle / FILE).write_text(text, encoding="utf-8", newline="\n")


def _there(bundle: Path) -> Iterator[str]:
    for snippet in SNIPPETS:
        path = f"{snippet.platform}/{snippet.file}"
        if (bundle / path).exists():
            yield path


def to_markdown(report: Report, manifest: Manifest, snippets: list[str]) -> str:
    """The card's text."""
    page = texts()
    page.filters.update({name: getattr(wording, name) for name in FILTERS}, **MARKDOWN)
    noise = answers.class_noise(report)
    return page.get_template(f"{FILE}.j2").render(
        report=report,
        manifest=manifest,
        snippets=snippets,
        student=report.model("student"),
        headline=verdict.headline(report),
        training=training(report),
        classes=classes(report),
        noise=f"{noise[0]:,} images, ±{100 * noise[1]:.1f} points" if noise else "",
        long=LONG,
        int8=_int8(report),
        limits=[*verdict.warnings(report), *elsewhere.not_run(report)],
        hosts=timings.hosts(report),
        missing=[file for file in manifest.files if not file.paths],
    )


def classes(report: Report) -> list[ClassRow]:
    """Top-1 by class of the student and its int8 file, the worst class of the student first."""
    rows = answers.class_rows(report)
    worst = sorted(rows, key=lambda row: (row.student is None, row.student or 0.0))
    return [
        ClassRow(
            row.label,
            wording.NONE if row.n is None else f"{row.n:,}",
            *_share(row.student, row.n),
            *_share(row.int8, row.n),
        )
        for row in worst
    ]


def _share(top1: float | None, n: int | None) -> tuple[str, str]:
    if top1 is None:
        return wording.NONE, wording.NONE
    return percent(top1), interval(wilson(round(top1 * n), n) if n else None)


def training(report: Report) -> list[tuple[str, str]]:
    """How the student was trained, and the settings that decide it."""
    facts: list[tuple[str, str]] = []
    for role in ("teacher", "baseline", "student"):
        if row := report.model(role):
            epochs = f"; {row.history[-1].epoch} epochs" if row.history else ""
            facts.append((role, f"{wording.network(row)}{epochs}, on {row.device}"))
    chosen = {name: report.settings.get(name) for name in ("seed", "student", "distill")}
    told = {name: value for name, value in chosen.items() if value is not None}
    facts += [(name, _setting(value)) for name, value in wording.flat(told)]
    return facts


def _setting(value: Any) -> str:
    return "off" if value is None else str(value)


def _int8(report: Report) -> list[tuple[str, str]]:
    """How the int8 files came about."""
    notes = report.quantization.notes if report.quantization else ()
    lines = [*precision.islands(report), *precision.rescue_lines(report), *notes]
    trials = report.quantization.trials if report.quantization else ()
    tried = [f"{t.name} {percent(t.val_top1)} %{' (kept)' if t.kept else ''}" for t in trials]
    if tried:
        lines.insert(0, f"Tried, top-1 on the validation split: {', '.join(tried)}.")
    return [*precision.facts(report), *(("", line) for line in lines)]
