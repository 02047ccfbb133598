"""The last stage: report.json and the two pages that people decide with.

Pages are pure functions of the `Report`. The HTML page is one file that works from disk without
a network: plotly.js is inlined, and colours follow the reader's light or dark setting by CSS.
"""

import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

from pipeline import (
    answer_figures,
    answers,
    device_figures,
    elsewhere,
    figures,
    on_device,
    precision,
    timings,
    trust,
    verdict,
    wording,
)
from pipeline.errors import StoreError
from pipeline.store import writing
from pipeline.summary import FILE, EpochRow, Report
from pipeline.wording import LONG

VERSION = 3
"""Raised when the pages tell more of the same results: those of finished runs are made anew."""
PAGES = ("report.html", "report.md", FILE)
TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
NUMBERS = ("number", "percent", "interval", "apart", "megabytes", "points", "network", "effort")
"""What templates may say of numbers, from `wording`."""
FIGURES = {
    "scatter": figures.scatter,
    "operators": figures.operators,
    "phones": device_figures.phones,
    "sustained": device_figures.sustained,
    "curves": figures.curves,
    "losses": figures.losses,
    "layers": figures.layers,
    "confusion": answer_figures.confusion,
    "reliability": answer_figures.reliability,
}
"""By the ids of their places on the page."""


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md and report.json into `folder`, each whole or not at all.

    report.json comes last: where it is new, the pages are too. Raises `StoreError` where the
    folder cannot be written.
    """
    texts = dict(zip(PAGES, (to_html(report), to_markdown(report), report.to_json()), strict=True))
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StoreError(f"{folder} is a file, not a folder", "Remove or rename it.") from error
        for name, text in texts.items():
            _replace(folder / name, text)


def remove(folder: Path) -> None:
    """Take the pages of earlier results out of `folder`."""
    for name in PAGES:
        (folder / name).unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def to_markdown(report: Report) -> str:
    """The same decisions, compact, for a pull request."""
    return _render("report.md.j2", report)


def to_html(report: Report) -> str:
    """The page: one file, no network."""
    made = {name: draw(report) for name, draw in FIGURES.items()}
    # "<" inside a script could end it; in JSON it may be written as an escape
    drawn = {
        name: str(figure.to_json()).replace("<", "\\u003c")
        for name, figure in made.items()
        if figure
    }
    return _render(
        "report.html.j2", report, figures=drawn, plotlyjs=get_plotlyjs() if drawn else ""
    )


def _render(template: str, report: Report, **more: Any) -> str:
    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters.update(
        {name: getattr(wording, name) for name in NUMBERS},
        md=escape_markdown,
        tied=tied,
    )
    return page.get_template(template).render(
        report=report,
        headline=verdict.headline(report),
        warnings=verdict.warnings(report),
        hosts=timings.hosts(report),
        seeds=verdict.seed_rows(report),
        seeds_note=verdict.seeds_note(report),
        contract=verdict.contract(report),
        answers=_answers(report),
        int8=_int8(report),
        phones=on_device.phone_groups(report),
        predicted=on_device.predicted_rows(report),
        predicted_note=on_device.predicted_note(report),
        file_notes=precision.file_notes(report),
        key=figures.key(report),
        curve_table=curve_rows(report),
        reasons=wording.by_reason(report),
        shown_apart=wording.by_reason(report, executed=True),
        settings=list(wording.flat(report.settings)),
        long=LONG,
        **more,
    )


def _int8(report: Report) -> dict[str, Any]:
    """What the section on int8 shows; a part that the run has not is empty."""
    return {
        "facts": precision.facts(report),
        "islands": precision.islands(report),
        "notes": report.quantization.notes if report.quantization else (),
        "trials": precision.trial_rows(report),
        "trials_note": precision.trials_note(report),
        "layers": precision.layer_rows(report),
        "worst": precision.worst_layers(report, LONG),
        "layers_note": precision.layers_note(report),
        "rescue": precision.rescue_lines(report),
        "cpus": elsewhere.cpu_rows(report),
        "schemes": elsewhere.scheme_rows(report),
        "not_run": elsewhere.not_run(report),
    }


def _answers(report: Report) -> dict[str, Any]:
    """What the sections on single classes, confidence and images show."""
    classes = answers.class_rows(report)
    return {
        "classes": classes,
        "columns": answers.class_columns(classes),
        "class_noise": answers.class_noise(report),
        "class_lines": answers.class_lines(report),
        "confusion_line": answers.confusion_line(report),
        "confusions": answers.confusion_rows(report),
        "matrices": answers.matrices(report),
        "confidence_lines": trust.confidence_lines(report),
        "confidence": trust.confidence_rows(report),
        "bins": trust.bin_rows(report),
        "binned": [
            title for name, (title, _) in trust.assessed(report).items() if name in trust.BINNED
        ],
        "change_line": answers.change_line(report),
        "pictures_line": answers.pictures_line(report),
        "pictures": answers.picture_rows(report),
        "lines": trust.lines(report),
    }


def tied(text: str) -> str:
    """`text` with units and relations held to their numbers, so that no line starts with "%"."""
    return re.sub(r"(?<=[\d<=]) (?=%|ms\b|MB\b|M\b|points\b|\d)|(?<=\bp) (?=[<=])", "\u00a0", text)


def escape_markdown(text: str) -> str:
    """`text` as one line of literal Markdown: names come from users' folders."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", flat).replace("&", "&amp;")


# ---- tables that only the page has ----


def curve_rows(report: Report) -> list[tuple[int, list[EpochRow | None]]]:
    """What each epoch gave, one entry a model with a history; long runs are thinned."""
    curves = [{e.epoch: e for e in row.history} for row in report.models if row.history]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    step = -(-len(epochs) // (2 * LONG)) or 1
    kept = [epoch for i, epoch in enumerate(epochs) if i % step == 0 or epoch == epochs[-1]]
    return [(epoch, [curve.get(epoch) for curve in curves]) for epoch in kept]
