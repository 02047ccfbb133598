"""Speed of training: the usual PyTorch loop against this project's own.

"Usual" is what the PyTorch tutorials and torchvision's references do: a data set of PIL images,
transforms in loading processes, float32 NCHW, the teacher run on every batch. "Ours" is the
pipeline's stages themselves, as a user runs them. Networks, batch size and threads are the same.

Every loop runs in fresh processes, for peak memory is a process's; the two take turns, for a
machine's speed drifts. This module is the process around them,
which loads no torch; `benchmarks.experiments.loops` is such a process.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError
from pipeline.machine import cores, cuda_devices
from pipeline.progress import console
from pipeline.settings import Augment, Device, Recipe, Settings, Student, StudentArch

Kind = Literal["teacher", "baseline", "live", "kept"]
TITLES: dict[Kind, str] = {
    "teacher": "teacher",
    "baseline": "baseline",
    "live": "distillation, live teacher",
    "kept": "distillation, kept views",
}
IMAGES, IMAGES_CUDA = 5_120, 46_080
TRIAL_STEPS = 12
"""Of the usual loop, to find its best number of loading processes; ten times that on CUDA."""
RATE, DECAY, PADDING = 0.05, 5e-4, 4
"""Of both loops."""


class Options(Settings):
    """What is timed; every default is the command line's."""

    source: Literal["cifar10", "cifar100", "digits", "fashion_mnist", "folder"]
    folder: Path | None = None
    """Of `source = "folder"`; its images are made 32 px large."""
    synthetic: bool
    images: int = Field(ge=0)
    epochs: int = Field(ge=1)
    repeats: int = Field(ge=1)
    batch: int = Field(ge=2)
    teacher: str
    teacher_width: float = Field(gt=0, le=16)
    student: StudentArch
    student_width: float = Field(gt=0, le=4)
    stem_stride: Literal[1, 2]
    views: int = Field(ge=1)
    threads: int = Field(ge=0)
    workers: int = Field(ge=-1)
    device: Device

    @property
    def on_cuda(self) -> bool:
        """Whether a CUDA GPU will be used."""
        return self.device == "cuda" or (self.device == "auto" and cuda_devices() > 0)

    @property
    def recipe(self) -> Recipe:
        """Of all trainings: an epoch to warm up, then those that count."""
        augment = Augment(crop_padding=PADDING)
        return Recipe(
            epochs=1 + self.epochs,
            batch_size=self.batch,
            learning_rate=RATE,
            weight_decay=DECAY,
            augment=augment,
        )

    @property
    def pupil(self) -> Student:
        """Baseline and student."""
        return Student(
            arch=self.student,
            width=self.student_width,
            stem_stride=self.stem_stride,
            recipe=self.recipe,
        )


class Task(Settings):
    """What one process is to do."""

    options: Options
    side: Literal["prepare", "usual", "ours"]
    kind: Kind = "teacher"
    home: Path
    """Folder of this process's results; the images lie in one beside it."""
    weights: Path | None = None
    """The teacher's."""
    workers: int = 0
    limit: int = 0
    """Images of the usual loop; 0 is all of the split."""


class Setup(Settings):
    """What both loops work on."""

    data: str
    images: int
    """Seen in an epoch: whole batches."""
    networks: dict[str, str]
    threads: int
    device: str


class Timing(Settings):
    """What one process found."""

    side: Literal["usual", "ours"]
    kind: Kind
    images_per_second: tuple[float, ...]
    """Of each epoch; the first is the warm-up."""
    peak_bytes: int
    """Most memory of the process (its loading processes come on top), or of the GPU."""
    epoch_peak_bytes: tuple[int | None, ...] = ()
    """The same after each epoch."""
    view_seconds: tuple[float, ...] = ()
    """What the teacher's answers to each view took before the training."""
    precision: str = "float32"
    weights: Path | None = None


class Found(BaseModel):
    """The whole experiment."""

    model_config = ConfigDict(frozen=True)

    options: Options
    setup: Setup
    workers: int
    trial: dict[int, float]
    """Images/s of the usual baseline loop by number of loading processes."""
    timings: tuple[Timing, ...]
    provenance: dict[str, str] = {}

    def speeds(self, side: str, kind: Kind) -> list[float]:
        """Images/s of all epochs that count."""
        kind = "live" if side == "usual" and kind == "kept" else kind  # there is one usual way
        mine = [each for each in self.timings if (each.side, each.kind) == (side, kind)]
        return [speed for each in mine for speed in each.images_per_second[1:]]

    def speed(self, side: str, kind: Kind) -> float:
        """Their median."""
        return statistics.median(self.speeds(side, kind))

    def peak(self, side: str, kind: Kind) -> int:
        """Most memory in bytes of any of the processes."""
        kind = "live" if side == "usual" and kind == "kept" else kind
        return max(x.peak_bytes for x in self.timings if (x.side, x.kind) == (side, kind))

    @property
    def view_seconds(self) -> float:
        """Median time of the teacher's answers to one view."""
        return statistics.median(s for each in self.timings for s in each.view_seconds)


def run(options: Options) -> Found:
    """Time all loops, each `options.repeats` times. Raises `PipelineError` where one fails."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temp:
        root = Path(temp)
        task = Task(options=options, side="prepare", home=root / "prepare")
        setup = Setup.model_validate_json(_ask(task))
        console.print(f"{setup.data}; {setup.device}", highlight=False)
        workers, trial = _choose_workers(task, setup)
        timings: list[Timing] = []
        weights: Path | None = None
        for repeat in range(options.repeats):
            for kind in TITLES:
                for side in ("usual", "ours"):
                    if (side, kind) == ("usual", "kept"):
                        continue
                    more = {"home": root / f"{side}-{kind}-{repeat}", "weights": weights}
                    done = _time(task, side=side, kind=kind, workers=workers, **more)
                    weights = weights or done.weights
                    # The file is gone when this ends, and its place is nobody's business.
                    timings.append(done.model_copy(update={"weights": None}))
    return Found(options=options, setup=setup, workers=workers, trial=trial, timings=tuple(timings))


def _choose_workers(task: Task, setup: Setup) -> tuple[int, dict[int, float]]:
    """The number of loading processes that suits the usual loop best, and how each fared."""
    options = task.options
    if options.workers >= 0:
        return options.workers, {}
    most = min(16, cores())
    tried = (max(1, most // 2), most) if options.on_cuda else (0, 1, setup.threads)
    limit = min(setup.images, TRIAL_STEPS * options.batch * (10 if options.on_cuda else 1))
    trial = {}
    for workers in dict.fromkeys(tried):
        done = _time(task, side="usual", kind="baseline", workers=workers, limit=limit)
        trial[workers] = statistics.median(done.images_per_second[1:])
    return max(trial, key=lambda workers: trial[workers]), trial


def _time(task: Task, **changes: Any) -> Timing:
    found = Timing.model_validate_json(_ask(task.model_copy(update=changes)))
    speed = statistics.median(found.images_per_second[1:])
    trial = f" with {changes['workers']} workers, a trial" if "limit" in changes else ""
    title = f"{found.side}, {TITLES[found.kind]}{trial}"
    console.print(f"{title}: {speed:,.0f} images/s", highlight=False)
    return found


def _ask(task: Task) -> str:
    """What a fresh process prints that does `task`; what it says of errors passes through."""
    command = [sys.executable, "-m", "benchmarks.experiments.loops", task.model_dump_json()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode == 2:
        message, _, remedy = last.partition("\t")
        raise PipelineError(message, remedy)
    if done.returncode != 0:
        raise PipelineError(
            f"timing {task.side} {task.kind} failed (exit code {done.returncode})",
            "What the process itself said stands above.",
        )
    return last
