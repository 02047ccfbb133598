"""The tournament: each distillation method and the baseline on one data set under one budget.

Every training goes through the pipeline's own stages and store: an interrupted tournament goes on
where it was, and what a run of the pipeline trained is not trained again. Who is best is decided on
the validation split; the test split is touched once, at the end, for all.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.stats import Interval, paired_difference
from pipeline import config as configs
from pipeline import flow
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import ConfigError, TrainingError
from pipeline.images import open_split
from pipeline.progress import console
from pipeline.records import Checkpoint, Measurement
from pipeline.settings import Recipe, Settings, read_table
from pipeline.stages.baseline import Baseline
from pipeline.stages.measure import accuracy_alone, answers
from pipeline.store import Store
from pipeline.wording import flat

BASELINE = "baseline"
SHARED = ("data", "teach", "seed", "device", "threads")
"""Tables and keys in which all entrants must agree."""
BUDGET = ("epochs", "batch_size")
"""Keys of the student's recipe in which they must."""


class Entrant(Settings):
    """A table [[entrant]]."""

    name: str = Field(min_length=1)
    set: tuple[str, ...] = ()
    """What it changes, as in the command line's --set."""


class Tournament(Settings):
    """The whole file."""

    config: Path
    """The settings that all start from; its table [distill] does not count."""
    set: tuple[str, ...] = ()
    """What is changed for all."""
    more_seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """What the best entrant and its baseline are trained with too."""
    entrant: tuple[Entrant, ...] = Field(min_length=1)


class Entry(BaseModel):
    """A network to be trained, by the name of its row."""

    model_config = ConfigDict(frozen=True)

    name: str
    words: str
    """Its settings."""
    config: Config
    baseline: str | None
    """What it is compared with; None for a baseline itself."""


class Entries(BaseModel):
    """Everything to be trained."""

    model_config = ConfigDict(frozen=True)

    rows: tuple[Entry, ...]
    """Each baseline before those that are compared with it."""
    more_seeds: tuple[int, ...]

    @property
    def config(self) -> Config:
        """What all have in common."""
        return self.rows[0].config


class Row(BaseModel):
    """What became of one training. Accuracies and differences are fractions."""

    model_config = ConfigDict(frozen=True)

    name: str
    words: str
    seed: int
    baseline: str | None
    failed: str | None = None
    """Why there is no network."""
    key: str = ""
    """In the store."""
    val_top1: float = 0.0
    seconds: float = 0.0
    """Of all epochs, validation included; the teacher's answers to kept views are not. Like the
    next, it tells little where the run was paused or shared the machine."""
    images_per_second: float = 0.0
    top1: float = 0.0
    top1_ci95: Interval = (0.0, 0.0)
    gain: float | None = None
    """Top-1 minus the baseline's."""
    gain_ci95: Interval = (0.0, 0.0)
    mcnemar_p: float | None = None


class Found(BaseModel):
    """The whole tournament."""

    model_config = ConfigDict(frozen=True)

    data: str
    teacher: str
    student: str
    budget: str
    best: str | None
    rows: tuple[Row, ...]
    seeds: tuple[Row, ...]
    """The best and its baseline, with every seed."""
    provenance: dict[str, str] = {}


def read(path: Path, more: Sequence[str] = ()) -> Entries:
    """The entries of the tournament at `path`, with the overrides `more` for all, checked.

    Raises `ConfigError` for whatever does not fit, before anything is trained.
    """
    tournament = _parse(path)
    # An entrant must not inherit what the file says of another method.
    common = ["distill={}", *tournament.set, *more]
    plain = configs.read(tournament.config, common)
    rows = [Entry(name=BASELINE, words="no teacher", config=plain, baseline=None)]
    for entrant in tournament.entrant:
        config = configs.read(tournament.config, [*common, *entrant.set])
        _check(entrant.name, config, plain)
        if entrant.name in {row.name for row in rows}:
            raise ConfigError(f"two rows are called `{entrant.name}`", "Rename one.")
        own = next((r.name for r in rows if r.baseline is None and _alike(r.config, config)), None)
        if own is None:
            own = f"{BASELINE} of {entrant.name}"
            words = ", ".join(["no teacher", *_own_recipe(config, plain)])
            rows.append(Entry(name=own, words=words, config=config, baseline=None))
        words = ", ".join([*_method(config), *_own_recipe(config, plain)])
        rows.append(Entry(name=entrant.name, words=words, config=config, baseline=own))
    if plain.student_seeds[0] in tournament.more_seeds:
        raise ConfigError(f"more_seeds names the first seed, {plain.student_seeds[0]}, again")
    return Entries(rows=tuple(rows), more_seeds=tournament.more_seeds)


def _parse(path: Path) -> Tournament:
    values = configs.parse(path)
    tables = values.get("entrant")
    if isinstance(tables, list):
        numbered = enumerate(tables, 1)
        values["entrant"] = [read_table(t, Entrant, (f"{path}: entrant {n}",)) for n, t in numbered]
    return read_table(values, Tournament, (str(path),))


def _check(name: str, config: Config, plain: Config) -> None:
    """Refuse an entrant that would have other images, another teacher or another budget."""
    changed = [key for key in SHARED if getattr(config, key) != getattr(plain, key)]
    own, common = config.student.model_dump(), plain.student.model_dump()
    changed += [f"student.recipe.{k}" for k in BUDGET if own["recipe"][k] != common["recipe"][k]]
    changed += [f"student.{k}" for k in own if k != "recipe" and own[k] != common[k]]
    if changed:
        raise ConfigError(
            f"entrant `{name}` changes {', '.join(changed)}, which all must share",
            "Change it for all, in the tournament's own `set`.",
        )
    flow.check(config)


def _alike(a: Config, b: Config) -> bool:
    """Whether both have the same baseline."""
    return a.student == b.student


def _method(config: Config) -> list[str]:
    """How the teacher is used, as in its row."""
    distill = config.distill
    told = distill.loss.model_dump(exclude_none=True)
    own = [f"{k.replace('_', ' ')} {v:g}" for k, v in told.items()]
    views = min(distill.views, config.student.recipe.epochs)
    parts = [distill.method, *own, *(["standardized logits"] if distill.standardize_logits else [])]
    guide = f"{views} kept view{'s' * (views > 1)}" if views else "live teacher"
    return [*parts, guide]


def _own_recipe(config: Config, plain: Config) -> list[str]:
    """Every key of the student's recipe that is not as for all: "learning rate 0.05"."""
    return _differing(config.student.recipe, plain.student.recipe)


def _differing(recipe: Recipe, usual: Recipe) -> list[str]:
    known = dict(flat(usual.model_dump()))
    changed = [(key, value) for key, value in flat(recipe.model_dump()) if value != known[key]]
    return [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in changed]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _budget(recipe: Recipe) -> str:
    """What all have in common: the chief keys, and those that are not as by default."""
    chief = ("epochs", "batch_size", "optimizer", "learning_rate")
    told = Recipe().model_copy(update={key: getattr(recipe, key) for key in chief})
    parts = (
        f"{recipe.epochs} epochs",
        f"{recipe.batch_size} images a step",
        recipe.optimizer,
        f"peak learning rate {recipe.learning_rate:g}",
        *_differing(recipe, told),
    )
    return ", ".join(parts)


class _Arena:
    """One tournament at work: what was trained, by name and seed."""

    def __init__(self, entries: Entries, store: Store) -> None:
        config = entries.config
        self.entries, self.first = entries, config.student_seeds[0]
        self.context = Context(
            store=store, seed=config.seed, device=config.device, threads=config.threads
        )
        self.dataset = config.data.run(self.context)
        self.teacher = config.teach.run(self.context, self.dataset)
        self.trained: dict[tuple[str, int], Checkpoint] = {}
        self.failed: dict[tuple[str, int], str] = {}

    def train(self, entry: Entry, seed: int) -> None:
        """Train what `entry` says, or find out that it diverges."""
        context, config = replace(self.context, seed=seed), entry.config
        try:
            if entry.baseline is None:
                made = Baseline().run(context, config.student, self.dataset)
            else:
                made = config.distill.run(context, config.student, self.teacher, self.dataset)
        except TrainingError as error:
            self.failed[entry.name, seed] = line = error.message
        else:
            assert made is not None
            self.trained[entry.name, seed], line = made, made.line
        console.print(f"{entry.name}, seed {seed}: {line}", markup=False, highlight=False)

    def best(self) -> Entry | None:
        """The entrant with the highest top-1 on the validation split after the last epoch."""
        there = [
            e for e in self.entries.rows if e.baseline and (e.name, self.first) in self.trained
        ]
        return max(there, key=lambda e: _last(self.trained[e.name, self.first]), default=None)


def run(entries: Entries, store: Store) -> Found:
    """Train all, the best with more seeds, and then look at the test split."""
    arena = _Arena(entries, store)
    for entry in entries.rows:
        arena.train(entry, arena.first)
    best = arena.best()
    pair = [e for e in entries.rows if best and e.name in (best.baseline, best.name)]
    for seed in entries.more_seeds:
        for entry in pair:
            arena.train(entry, seed)
    seeds = [(e, s) for s in (arena.first, *entries.more_seeds) for e in pair]
    return _judged(arena, best, seeds if entries.more_seeds else [])


def _judged(arena: _Arena, best: Entry | None, seeds: Sequence[tuple[Entry, int]]) -> Found:
    tested = {
        place: accuracy_alone(arena.context, checkpoint, arena.dataset)
        for place, checkpoint in arena.trained.items()
    }
    truth = open_split(arena.dataset, "test").labels
    right = {place: answers(found).argmax(1) == truth for place, found in tested.items()}

    def row(entry: Entry, seed: int) -> Row:
        place = entry.name, seed
        facts: dict[str, Any] = {"failed": arena.failed.get(place)}
        if place in arena.trained:
            facts |= _facts_of(arena.trained[place], tested[place])
        against = (entry.baseline or "", seed)
        if place in right and against in right:
            pair = paired_difference(right[against], right[place])
            facts |= {"gain": pair.difference, "gain_ci95": pair.ci95, "mcnemar_p": pair.mcnemar_p}
        return Row(name=entry.name, words=entry.words, seed=seed, baseline=entry.baseline, **facts)

    teacher = accuracy_alone(arena.context, arena.teacher, arena.dataset)
    return Found(
        data=arena.dataset.line,
        teacher=f"{_size(arena.teacher)}; {teacher.line}",
        student=_size(next(iter(arena.trained.values()), None)),
        budget=_budget(arena.entries.config.student.recipe),
        best=best and best.name,
        rows=tuple(row(entry, arena.first) for entry in arena.entries.rows),
        seeds=tuple(row(entry, seed) for entry, seed in seeds),
    )


def _facts_of(checkpoint: Checkpoint, tested: Measurement) -> dict[str, Any]:
    accuracy, history = tested.accuracy, checkpoint.history
    assert accuracy is not None
    return {
        "key": checkpoint.key,
        "val_top1": _last(checkpoint),
        "seconds": sum(epoch.seconds for epoch in history),
        "images_per_second": fmean(epoch.images_per_second or 0.0 for epoch in history),
        "top1": accuracy.top1,
        "top1_ci95": accuracy.top1_ci95,
    }


def _last(checkpoint: Checkpoint) -> float:
    return checkpoint.history[-1].val_top1


def _size(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "none was trained"
    stem = f", stem stride {checkpoint.stem_stride}" if checkpoint.stem_stride else ""
    return (
        f"{checkpoint.arch} ×{checkpoint.width:g}{stem}, {checkpoint.params:,} parameters, "
        f"{checkpoint.macs / 1e6:.1f} M MACs; on {checkpoint.device}"
    )
