"""Successive halving: the promising few are trained a little, the better half a little more.

Jamieson & Talwalkar 2016: n networks with an eighth of the epochs, the better half with twice as
many, and so on. Each training is a whole one of the project's own distillation, its schedule drawn
in to the epochs it has (one that is cut short in the middle of a long schedule says little), and is
kept in the store. The validation split judges; the test split is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from rich.markup import escape

from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import DivergedError
from pipeline.fit import speed
from pipeline.fit.search import Looked, front
from pipeline.fit.space import Network
from pipeline.progress import console, say
from pipeline.records import Checkpoint, Dataset

FRACTION = 8
"""The first rung has so many times fewer epochs than a whole training."""
APART = 1.3
"""Capacities of two of the few differ by so much at least, as long as there are enough others."""
RUNGS, WHOLE = 0.2, 0.35
"""Shares of `--minutes` for all rungs, and for the whole training of one network and its baseline.
The rest is for the search, the teacher, int8, the exports and the measurements."""


class Trained(NamedTuple):
    """One network on one rung."""

    network: Network
    key: str
    """Of the checkpoint; empty where there is none."""
    epochs: int
    val_top1: float
    """0 where its loss was no number any more."""
    seconds: float
    """Of the training, now or in an earlier run."""


class Plan(NamedTuple):
    """Who is trained, how far."""

    few: tuple[Looked, ...]
    rungs: tuple[int, ...]
    """Epochs of each."""
    notes: tuple[str, ...] = ()
    """Who was left out for want of time."""


def shortlist(fitting: Sequence[Looked], most: int) -> list[Looked]:
    """The `most` promising of those that keep the budget, that of most capacity first.

    From the front of latency, size and capacity: the largest, and below it ones that differ, for
    the rungs are to compare unlike networks; places that are left go to the largest of the rest.
    """
    ranked = sorted(front(fitting), key=lambda each: -each.candidate.capacity)
    chosen = list[Looked]()
    for each in ranked:
        if not chosen or each.candidate.capacity * APART <= chosen[-1].candidate.capacity:
            chosen.append(each)
    chosen = chosen[:most]
    chosen += [each for each in ranked if each not in chosen][: most - len(chosen)]
    return sorted(chosen, key=lambda each: -each.candidate.capacity)


def plan(fitting: Sequence[Looked], most: int, epochs: int, time: Time | None) -> Plan:
    """Who is to be trained; with a `time` only what this machine can train in it."""
    if time is None:
        few = shortlist(fitting, most)
        return Plan(tuple(few), rungs(len(few), epochs))
    few, late = _in_time(fitting, most, lambda each: time.whole(each) <= time.seconds * WHOLE)
    notes = [
        f"{each.candidate.network.title}: not tried, for its whole training would take about "
        f"{time.whole(each) / 60:.1f} of the {time.seconds / 60:g} minutes"
        for each in late
    ]
    if not few:
        few = [min(late, key=time.whole)]
        notes = [
            f"no network can be trained here in {time.seconds / 60:g} minutes; "
            f"{few[0].candidate.network.title} takes the least, about "
            f"{time.whole(few[0]) / 60:.1f} minutes"
        ]
    while len(few) > 1 and _cost(list(map(time.epoch, few)), epochs) > time.seconds * RUNGS:
        slowest = max(few, key=time.epoch)
        few.remove(slowest)
        notes.append(f"{slowest.candidate.network.title}: not tried, for want of time")
    return Plan(tuple(few), rungs(len(few), epochs), tuple(notes))


class Time:
    """How long trainings take here, against the time that there is for everything."""

    def __init__(
        self, minutes: float, config: Config, dataset: Dataset, context: Context, question: str
    ) -> None:
        self.seconds = 60 * minutes
        self._config, self._dataset, self._context = config, dataset, context
        self._question = question
        self._known: dict[Network, float] = {}

    def epoch(self, each: Looked) -> float:
        """Seconds of one epoch."""
        network = each.candidate.network
        if network not in self._known:
            found = speed.of(self._config, network, self._dataset, self._context, self._question)
            self._known[network] = found.epoch_seconds
        return self._known[network]

    def whole(self, each: Looked) -> float:
        """Seconds of all trainings that a run needs, its baselines among them."""
        config = self._config
        trainings = len(config.student_seeds) * (2 if config.baseline.enabled else 1)
        return trainings * config.student.recipe.epochs * self.epoch(each)


def _in_time(
    fitting: Sequence[Looked], most: int, quick: Callable[[Looked], bool]
) -> tuple[list[Looked], list[Looked]]:
    """The promising few that are `quick` enough, and those that are not."""
    left, late = list(fitting), list[Looked]()
    while few := shortlist(left, most):
        slow = [each for each in few if not quick(each)]
        if not slow:
            break
        late += slow
        left = [each for each in left if each not in slow]
    return few, late


def _cost(paces: Sequence[float], epochs: int) -> float:
    """Seconds of all rungs, if the slowest always go on; `paces` are those of an epoch."""
    slowest = sorted(paces, reverse=True)
    steps = rungs(len(paces), epochs)
    return sum(each * sum(slowest[: len(paces) >> at]) for at, each in enumerate(steps))


def rungs(networks: int, epochs: int) -> tuple[int, ...]:
    """Epochs of each rung: twice those of the one before, up to those of a whole training.

    None where there is nothing to choose between.
    """
    first, found = max(1, epochs // FRACTION), list[int]()
    while networks > 1:
        found.append(min(epochs, first << len(found)))
        networks //= 2
    return tuple(found)


def climb(
    chosen: Plan,
    config: Config,
    context: Context,
    data: dict[int, tuple[Dataset, Checkpoint]],
) -> tuple[Looked, list[Trained]]:
    """The network that came out best, and all trainings; `data` has images and teacher by size."""
    alive, trained = list(chosen.few), list[Trained]()
    for epochs in chosen.rungs:
        top1: dict[Network, float] = {}
        for each in alive:
            network = each.candidate.network
            one = _train(network, epochs, config, context, *data[network.size])
            top1[network] = one.val_top1
            trained.append(one)
            told = f"{network.title}: validation {one.val_top1:.2%} after {epochs} epochs"
            say("fit", f"{one.seconds:.1f} s", told)
        # Of equals the one with more capacity has more to gain from more epochs.
        alive.sort(key=lambda each: (-top1[each.candidate.network], -each.candidate.capacity))
        alive = alive[: max(1, len(alive) // 2)]
    return alive[0], trained


def _train(
    network: Network,
    epochs: int,
    config: Config,
    context: Context,
    dataset: Dataset,
    teacher: Checkpoint,
) -> Trained:
    """`network` distilled for so many epochs, by the method and the recipe of `config`."""
    student = network.student(config)
    recipe = student.recipe.model_copy(update={"epochs": epochs})
    pretrained = student.pretrained
    if pretrained is not None:
        frozen = min(pretrained.frozen_epochs, epochs - 1)
        pretrained = pretrained.model_copy(update={"frozen_epochs": frozen})
    student = student.model_copy(update={"recipe": recipe, "pretrained": pretrained})
    seeded = replace(context, seed=config.student_seeds[0], logs=None)
    try:
        found = config.distill.run(seeded, student, teacher, dataset)
    except DivergedError as error:
        console.print(f"[yellow]{escape(f'{network.title}: {error.message}')}[/]")
        return Trained(network, "", epochs, 0.0, 0.0)
    return Trained(network, found.key, epochs, found.history[-1].val_top1, found.seconds)
