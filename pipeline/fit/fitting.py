"""The command `fit`, read top to bottom: search without training, halving, one in full, verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipeline import config as settings
from pipeline import flow, summary
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import ConfigError, require
from pipeline.fit import halving, pages, phone, search, space
from pipeline.fit.budget import Budget
from pipeline.fit.candidates import Subject
from pipeline.fit.judging import judge
from pipeline.fit.outcome import Fit, Row, Step
from pipeline.fit.phone import Way
from pipeline.fit.space import Network
from pipeline.progress import say
from pipeline.records import Checkpoint, Dataset
from pipeline.store import Store


class Request(NamedTuple):
    """What was asked for on the command line."""

    config: Path
    overrides: Sequence[str]
    phone: str
    runtime: str | None
    threads: int | None
    budget: Budget
    sizes: tuple[int, ...]
    """Resolutions to try; empty: as `space.of` has it."""
    trials: int
    """Networks to look at, at most."""
    few: int
    """Networks to train, at most."""
    minutes: float | None
    command: str


class Asked(NamedTuple):
    """A request, checked."""

    request: Request
    config: Config
    way: Way
    notes: tuple[str, ...]
    store: Store
    folder: Path

    @property
    def context(self) -> Context:
        """What the trainings share."""
        found = self.config
        return Context(
            store=self.store,
            seed=found.seed,
            device=found.device,
            threads=found.threads,
            checkpoint_seconds=found.checkpoint_seconds,
        )


def run(request: Request, store: Store, runs: Path) -> Fit:
    """Find the student that the budget allows; fill runs/<name>-fit.

    Raises `ConfigError` for what cannot be asked, `NotInstalledError` without Optuna, and whatever
    a run raises.
    """
    asked = _check(request, store, runs)
    # Without a report of its own it leaves an earlier one, whose results are needed still.
    with store.referred_by(asked.folder, replaces=False):
        return _run(asked, runs)


def _run(asked: Asked, runs: Path) -> Fit:
    """Part by part."""
    request = asked.request
    dataset = asked.config.data.run(asked.context)
    say("data", "", dataset.line)
    fit, found = _search(asked, dataset)
    told = _write(fit, asked.folder)
    if not found.fitting:
        return told

    limit = None
    if request.minutes is not None:
        about = f"{request.budget} {asked.way} {request.minutes}"
        limit = halving.Time(request.minutes, asked.config, dataset, asked.context, about)
    chosen = halving.plan(found.fitting, request.few, fit.epochs, limit)
    fit = fit.model_copy(update={"notes": (*fit.notes, *chosen.notes), "rungs": chosen.rungs})
    data = _teachers(asked, dataset, {each.candidate.network.size for each in chosen.few})
    winner, trained = halving.climb(chosen, asked.config, asked.context, data)
    fit = _with_steps(fit, winner.candidate.network, trained, data)
    _write(fit, asked.folder)
    fit = _in_full(asked, fit, winner.candidate.network, dataset.input.size, runs)
    return _write(fit, asked.folder)


def _search(asked: Asked, dataset: Dataset) -> tuple[Fit, search.Found]:
    """Everything that can be said without training."""
    request = asked.request
    subject = Subject.of(asked.config, asked.context, dataset)
    _check_precisions(subject, asked.way)
    tried = space.of(asked.config, dataset.input.size, request.sizes)
    left = phone.without_rows(asked.way, subject.precisions)
    asked = asked._replace(notes=tuple(filter(None, (*asked.notes, left, *tried.notes))))
    question = search.Question(tried, asked.way, request.budget, request.trials, asked.config.seed)
    since = time.perf_counter()
    found = search.search(question, subject)
    told = f"{len(found.looked)} of {len(tried.networks)} networks looked at for "
    told += f"{asked.way.title}: {len(found.fitting)} keep the budget"
    say("search", f"{time.perf_counter() - since:.1f} s", told)
    return _fit(asked, dataset, found, len(tried.networks)), found


def _write(fit: Fit, folder: Path) -> Fit:
    """Write the pages, with a word on a report in `folder` that is not of this fit, and return what
    they tell."""
    if fit.final is None and (folder / summary.FILE).exists():
        note = "report.html and bundle/ in this folder are of an earlier fit"
        fit = fit.model_copy(update={"notes": (*fit.notes, note)})
    pages.write(fit, folder)
    return fit


def _check(request: Request, store: Store, runs: Path) -> Asked:
    """Find out in a second what would otherwise end the search later."""
    require("optuna", "fit")
    config = settings.read(request.config, request.overrides)
    way, note = phone.find(request.phone, request.runtime, request.threads)
    flow.check(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("fit works in one process", "Start it without torchrun.")
    config = config.model_copy(update={"name": f"{config.name}-fit"})
    notes = [note]
    if config.seeds:
        notes.append(f"networks are compared with seed {config.student_seeds[0]} alone")
    return Asked(request, config, way, tuple(notes), store, runs / config.name)


def _check_precisions(subject: Subject, way: Way) -> None:
    if not set(subject.precisions) & set(way.precisions):
        raise ConfigError(
            f"{way.title}: latencies are published of {' and '.join(way.precisions)} files, and "
            f"the settings make {' and '.join(subject.precisions)}",
            "See export.onnx.precisions and quantize.enabled.",
        )


def _teachers(
    asked: Asked, dataset: Dataset, sizes: set[int]
) -> dict[int, tuple[Dataset, Checkpoint]]:
    """Images and teacher by resolution: a student imitates one that saw the same pixels."""
    found = {}
    for size in sorted(sizes):
        sized = dataset
        if size != dataset.input.size:
            sized = _sized(asked, size).data.run(asked.context)
        teacher = asked.config.teach.run(asked.context, sized)
        say("teach", f"{teacher.seconds:.1f} s", f"{size} px: {teacher.line}")
        found[size] = (sized, teacher)
    return found


def _sized(asked: Asked, size: int) -> Config:
    """The settings for images of that size."""
    data = asked.config.data.model_copy(update={"size": size})
    return asked.config.model_copy(update={"data": data})


def _in_full(asked: Asked, fit: Fit, network: Network, own: int, runs: Path) -> Fit:
    """The whole pipeline with the student `network`, and whether its files keep the budget."""
    config = asked.config if network.size == own else _sized(asked, network.size)
    config = config.model_copy(update={"student": network.student(config)})
    folder = flow.run(config, asked.store, runs, asked.request.command)
    assert folder is not None  # None is for those who help a leader
    report = summary.read(folder)
    taught = {"teach": fit.seconds["teach"]}  # of every resolution, not of this one alone
    final = judge(network, report, folder, asked.way, asked.request.budget)
    return fit.model_copy(
        update={"final": final, "seconds": {**fit.seconds, **report.seconds, **taught}}
    )


def _fit(asked: Asked, dataset: Dataset, found: search.Found, of: int) -> Fit:
    """What is known before anything is trained."""
    ahead = search.front(found.looked)
    rows = tuple(
        Row(
            key=each.candidate.key,
            network=each.candidate.network,
            params=each.candidate.params,
            macs=each.candidate.macs,
            shots=each.shots,
            front=each in ahead,
            seconds=each.candidate.seconds,
        )
        for each in found.looked
    )
    return Fit(
        run=asked.config.name,
        command=asked.request.command,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        data=dataset.line,
        phone=asked.way.title,
        runtime=asked.way.runtime,
        notes=asked.notes,
        budget=asked.request.budget,
        space=of,
        rows=rows,
        refused={network.title: why for network, why in found.refused.items()},
        epochs=asked.config.student.recipe.epochs,
        seconds={"search": sum(row.seconds for row in rows)},
    )


def _with_steps(
    fit: Fit,
    winner: Network,
    trained: Sequence[halving.Trained],
    data: dict[int, tuple[Dataset, Checkpoint]],
) -> Fit:
    """`fit` with what the rungs found."""
    rows = tuple(
        row.model_copy(
            update={
                "steps": tuple(
                    Step(
                        key=each.key,
                        epochs=each.epochs,
                        val_top1=each.val_top1,
                        seconds=each.seconds,
                    )
                    for each in trained
                    if each.network == row.network
                )
            }
        )
        for row in fit.rows
    )
    spent = {
        "teach": sum(teacher.seconds for _, teacher in data.values()),
        "rungs": sum(each.seconds for each in trained),
    }
    seconds = {**fit.seconds, **spent}
    return fit.model_copy(update={"rows": rows, "winner": winner, "seconds": seconds})
