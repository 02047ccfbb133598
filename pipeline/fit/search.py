"""The search among untrained students: Optuna proposes, `candidates` counts.

Three objectives at once: little latency, a small file, much capacity; the budget is a constraint. A
space that is no larger than the trials is enumerated, for then nothing is left to chance; a larger
one is searched by TPE (Ozaki et al. 2022: several objectives), from each family's smallest on. The
study is kept nowhere: proposals follow from the seed and the results, which are in the store, so a
search that was stopped is repeated up to there in seconds, and goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pipeline.errors import ConfigError, ExportError, require
from pipeline.fit.budget import Budget
from pipeline.fit.candidates import Candidate, Subject, look, shots
from pipeline.fit.phone import Way
from pipeline.fit.shots import Shot, best
from pipeline.fit.space import Network, Space, has_widths
from pipeline.progress import bar
from pipeline.settings import StudentArch

if TYPE_CHECKING:
    import optuna

BOUNDS = ("latency", "size", "memory")
OVER = "over"
"""Where a trial keeps by how much it breaks the `BOUNDS`."""
TIRED = 4
"""Proposals for each network that is to be looked at: TPE repeats itself."""


class Looked(NamedTuple):
    """A candidate, and its files that can be judged on the phone, the most exact first."""

    candidate: Candidate
    shots: tuple[Shot, ...]

    @property
    def shot(self) -> Shot:
        """The file that stands for it: the most exact that keeps the budget."""
        return best(self.shots)

    @property
    def fits(self) -> bool:
        """Whether it keeps every bound."""
        return not self.shot.over

    @property
    def objectives(self) -> tuple[float, float, float]:
        """Each to be small."""
        return self.shot.latency_ms, float(self.shot.bytes), -self.candidate.capacity

    def beats(self, other: Looked) -> bool:
        """Whether it is nowhere worse in latency, size and capacity, and somewhere better."""
        own, its = self.objectives, other.objectives
        return own != its and all(a <= b for a, b in zip(own, its, strict=True))


class Question(NamedTuple):
    """What is asked."""

    space: Space
    way: Way
    budget: Budget
    trials: int
    """Networks to look at, at most."""
    seed: int


class Found(NamedTuple):
    """What the search came to."""

    looked: tuple[Looked, ...]
    """Each network once, that of most capacity first."""
    refused: dict[Network, str]
    """Networks that no file could be made of, and why."""

    @property
    def fitting(self) -> list[Looked]:
        """Those that keep the budget."""
        return [each for each in self.looked if each.fits]


def search(question: Question, subject: Subject) -> Found:
    """Look at as many networks as there are trials.

    Raises `NotInstalledError` where Optuna is missing, `ConfigError` where no network has a file
    that can be judged on this phone.
    """
    found, refused = dict[Network, Looked](), dict[Network, str]()
    total = min(question.trials, len(question.space.networks))
    with _quiet(), bar("fit", total) as shown:
        optuna = require("optuna", "fit")

        def one(trial: optuna.Trial) -> tuple[float, float, float]:
            network = _propose(trial, question.space)
            new = network not in found and network not in refused
            if new:
                shown.advance(0, note=network.title)
                _look(network, question, subject, found, refused)
                shown.advance()
            if network in refused:
                raise optuna.TrialPruned
            over = found[network].shot.over
            trial.set_user_attr(OVER, [over.get(name, 1.0) - 1.0 for name in BOUNDS])
            return found[network].objectives

        def enough(study: optuna.Study, _: Any) -> None:
            if len(found) + len(refused) >= total:
                study.stop()

        study = optuna.create_study(
            directions=["minimize"] * 3, sampler=_sampler(question), study_name="fit"
        )
        for smallest in _smallest(question):
            study.enqueue_trial(smallest)
        most = TIRED * max(total, len(question.space.networks))
        study.optimize(one, n_trials=most, callbacks=[enough])
    if not found:
        why = next(iter(refused.values()), "there is none")
        raise ConfigError(f"no network has a file that can be judged: {why}", "See export.onnx.")
    looked = sorted(found.values(), key=lambda each: (*each.objectives[::-1],))
    return Found(tuple(looked), refused)


def front(found: Sequence[Looked]) -> list[Looked]:
    """Those that no other one beats."""
    return [each for each in found if not any(other.beats(each) for other in found)]


def _look(
    network: Network,
    question: Question,
    subject: Subject,
    found: dict[Network, Looked],
    refused: dict[Network, str],
) -> None:
    """Count `network` and judge it; put it where it belongs."""
    try:
        candidate = look(subject, network)
    except ExportError as error:
        refused[network] = error.message
        return
    there = shots(candidate, question.way, question.budget)
    if there:
        found[network] = Looked(candidate, tuple(there))
    else:
        refused[network] = next(iter(candidate.missing.values()), "none of its precisions is known")


def _propose(trial: optuna.Trial, space: Space) -> Network:
    """A network; widths and sizes by their places, which have an order."""
    arch = cast(StudentArch, trial.suggest_categorical("arch", space.archs))
    width = trial.suggest_int("width", 0, len(space.widths) - 1)
    stride = trial.suggest_categorical("stem_stride", space.strides)
    size = trial.suggest_int("size", 0, len(space.sizes) - 1)
    return space.network(arch, space.widths[width], stride, space.sizes[size])


def _smallest(question: Question) -> list[dict[str, Any]]:
    """The smallest network of each family, to begin with where the space is not enumerated.

    If anything fits, they do.
    """
    space = question.space
    if question.trials >= len(space.networks):
        return []
    least = {"width": 0, "stem_stride": max(space.strides), "size": len(space.sizes) - 1}
    return [{"arch": arch, **least} for arch in space.archs if has_widths(arch)]


def _sampler(question: Question) -> optuna.samplers.BaseSampler:
    samplers = require("optuna.samplers", "fit")
    space = question.space
    if question.trials >= len(space.networks):
        grid = {
            "arch": space.archs,
            "width": range(len(space.widths)),
            "stem_stride": space.strides,
            "size": range(len(space.sizes)),
        }
        return samplers.GridSampler(grid, seed=question.seed)
    return samplers.TPESampler(
        seed=question.seed, constraints_func=lambda trial: trial.user_attrs.get(OVER, (1.0,) * 3)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Optuna's line for each trial, the traceback of one that is interrupted, and what
    it says of `constraints_func`."""
    optuna = require("optuna", "fit")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)  # version 5 has another way, 4 has not
            yield
    finally:
        optuna.logging.set_verbosity(before)
