"""The last stage: report.json and the two pages that people decide with.

Pages are pure functions of the `Report`. The HTML page is one file that works from disk without
a network: plotly.js is inlined, and colours follow the reader's light or dark setting by CSS.
"""

import os
import shlex
from math import sqrt
from pathlib import Path
from typing import Any

from pipeline import (
    device_figures,
    elsewhere,
    figures,
    on_device,
    precision,
    recommending,
    templating,
    timings,
    tradeoffs,
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
FIGURES = {
    "latency": tradeoffs.latency,
    "size": tradeoffs.size,
    "phones": device_figures.phones,
    "sustained": device_figures.sustained,
    "curves": figures.curves,
    "losses": figures.losses,
    "layers": figures.layers,
    "operators": figures.operators,
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
    return _render("report.html.j2", report, **templating.drawn(made))


def _render(template: str, report: Report, **more: Any) -> str:
    page = templating.environment(predicted_cell=on_device.predicted_cell)
    return page.get_template(template).render(
        report=report,
        answers=recommending.recommend(report),
        rule=recommending.RULE,
        headline=verdict.headline(report),
        warnings=verdict.warnings(report),
        hosts=timings.hosts(report),
        seeds=verdict.seed_rows(report),
        seeds_note=verdict.seeds_note(report),
        contract=verdict.contract(report),
        classes=class_rows(report),
        class_noise=class_noise(report),
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


# ---- tables that only the page has ----


def class_rows(report: Report) -> list[dict[str, Any]]:
    """Top-1 by class of teacher, student and int8, what int8 loses most first."""
    int8 = next((pair[1] for pair in verdict.lead_pairs(report) if pair[1].class_top1), None)
    columns = {"teacher": report.model("teacher"), "student": report.model("student"), "int8": int8}
    shares = {name: row.class_top1 for name, row in columns.items() if row and row.class_top1}
    if not shares:
        return []
    counts = report.dataset.class_counts or (None,) * len(report.labels)
    rows = []
    for index, label in enumerate(report.labels):
        row = {name: shares[name][index] if name in shares else None for name in columns}
        student, quantized = row["student"], row["int8"]
        change = None if student is None or quantized is None else quantized - student
        rows.append({"label": label, "n": counts[index], **row, "change": change})
    return sorted(rows, key=lambda row: (row["change"] is None, row["change"] or 0))


def class_noise(report: Report) -> tuple[int, float] | None:
    """A typical class's number of test images, and the half-width of its 95 % interval."""
    student, counts = report.model("student"), report.dataset.class_counts
    if not counts or student is None or student.top1 is None:
        return None
    typical = sorted(counts)[len(counts) // 2]
    return (typical, 1.96 * sqrt(student.top1 * (1 - student.top1) / typical)) if typical else None


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
