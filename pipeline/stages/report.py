"""The last stage: report.json and the two pages that people decide with.

Pages are pure functions of the `Report`. The HTML page is one file that works from disk without
a network: plotly.js is inlined, and colours follow the reader's light or dark setting by CSS.
"""

import shlex
from pathlib import Path
from typing import Any

from pipeline import (
    answer_figures,
    answers,
    device_figures,
    elsewhere,
    figures,
    on_device,
    precision,
    recommending,
    templating,
    timings,
    tradeoffs,
    trust,
    verdict,
    wording,
)
from pipeline.errors import StoreError
from pipeline.store import writing
from pipeline.summary import FILE, EpochRow, Report
from pipeline.whole import write_whole
from pipeline.wording import LONG

VERSION = 4
"""Raised when the pages tell more of the same results: those of finished runs are made anew."""
PAGES = ("report.html", "report.md", FILE)
FIGURES = {
    "latency": tradeoffs.latency,
    "size": tradeoffs.size,
    "phones": device_figures.phones,
    "sustained": device_figures.sustained,
    "curves": figures.curves,
    "losses": figures.losses,
    "layers": figures.layers,
    "operators": figures.operators,
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
            write_whole(folder / name, text)


def remove(folder: Path) -> None:
    """Take the pages of earlier results out of `folder`."""
    for name in PAGES:
        (folder / name).unlink(missing_ok=True)


def to_markdown(report: Report) -> str:
    """The same decisions, compact, for a pull request."""
    return _render("report.md.j2", report)


def to_html(report: Report) -> str:
    """The page: one file, no network."""
    made = {name: draw(report) for name, draw in FIGURES.items()}
    return _render("report.html.j2", report, **templating.drawn(made))


def _render(template: str, report: Report, **more: Any) -> str:
    page = templating.environment(predicted_cell=on_device.predicted_cell)
    return page.get_template(template).render(
        report=report,
        targets=recommending.recommend(report),
        rule=recommending.RULE,
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
        columns=on_device.columns(report),
        columns_note=on_device.columns_note(report),
        key=tradeoffs.key(report),
        operator_table=figures.operator_table(report),
        commands=commands(report),
        executed_by=list(dict.fromkeys(filter(None, (r.evaluated_with for r in report.rows)))),
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
        "int8": "int8" in answers.by_name(report),
        "matrices": answers.matrices(report),
        "confidence_lines": trust.confidence_lines(report),
        "confidence": trust.confidence_rows(report),
        "bins": trust.bin_rows(report),
        "binned": [
            title for name, (title, _) in trust.assessed(report).items() if name in trust.BINNED
        ],
        "change_line": answers.change_line(report),
        "pictures_line": answers.pictures_line(report),
        "pictures_order": answers.pictures_order(report),
        "pictures": answers.picture_rows(report),
        "lines": trust.lines(report),
    }


# ---- tables that only the page has ----


def commands(report: Report) -> list[tuple[str, str]]:
    """What to type: to run it again, to check the files, to measure and to hold a change to it."""
    run = shlex.quote(report.run)
    return [
        (
            "The run, in a clone with its .venv; what is kept in the store is not done again:",
            report.command,
        ),
        ("These pages, from report.json:", f"python -m pipeline report {run}"),
        (
            "Checksums and golden answers of the bundle, on any machine with a runtime:",
            f"cd runs/{run}/bundle && python selftest.py",
        ),
        ("The latencies, here:", f"python -m benchmarks latency {run}"),
        (
            "On a phone: in its browser, or over a cable with a benchmark program that you bring:",
            f"python -m benchmarks phone {run}\n"
            f"python -m benchmarks adb {run} --binary onnxruntime_perf_test",
        ),
        ("Another run against this one:", f"python -m pipeline compare {run} OTHER"),
    ]


def curve_rows(report: Report) -> list[tuple[int, list[EpochRow | None]]]:
    """What each epoch gave, one entry a model with a history; long runs are thinned."""
    curves = [{e.epoch: e for e in row.history} for row in report.models if row.history]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    step = -(-len(epochs) // (2 * LONG)) or 1
    kept = [epoch for i, epoch in enumerate(epochs) if i % step == 0 or epoch == epochs[-1]]
    return [(epoch, [curve.get(epoch) for curve in curves]) for epoch in kept]
