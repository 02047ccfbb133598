"""One loop in a fresh process, which `training` starts; it prints one line of JSON."""

import sys
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel

import models
from benchmarks.experiments import usual
from benchmarks.experiments.training import IMAGES, IMAGES_CUDA, Options, Setup, Task, Timing
from benchmarks.latency import peak_rss
from pipeline import devices, evaluation
from pipeline.context import Context
from pipeline.errors import PipelineError
from pipeline.images import open_split
from pipeline.machine import cores
from pipeline.records import Answers, Checkpoint, Dataset, InputSpec, Split
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.stages.distill import Distill
from pipeline.stages.teach import Teach
from pipeline.store import Store
from pipeline.training import Job

VALIDATION = 100
"""Images, as few as a set of 100 classes allows: the time of validation does not count."""


def _child(task: Task) -> BaseModel:
    dataset = _dataset(task)
    if task.side == "prepare":
        return _prepare(task, dataset)
    return (_ours if task.side == "ours" else _usual)(task, dataset)


def _dataset(task: Task) -> Dataset:
    """The images, read by the first process and stored for the others."""
    options = task.options
    context = Context(store=Store(task.home.with_name("data")))
    images = options.images or (IMAGES_CUDA if options.on_cuda else IMAGES)
    if not options.synthetic:
        total = images + VALIDATION
        settings = {"limit_train": total, "validation_fraction": VALIDATION / total}
        if options.source == "folder":
            settings |= {"folder": options.folder, "size": 32}
        return Data(source=options.source, **settings).run(context)

    def work(folder: Path) -> Dataset:
        rng, parts = np.random.default_rng(0), {}
        for name, n in (("train", images), ("val", VALIDATION), ("test", VALIDATION)):
            np.save(folder / f"{name}.npy", rng.integers(0, 256, (n, 32, 32, 3), np.uint8))
            np.save(folder / f"{name}-labels.npy", rng.integers(0, 10, n))
            parts[name] = Split(n=n, labels=f"{name}-labels.npy", images=f"{name}.npy")
        return Dataset(
            source="random images of CIFAR-10's shape",
            labels=tuple("0123456789"),
            input=InputSpec(size=32, channels=3, mean=(0.5,) * 3, std=(0.29,) * 3),
            digest=f"synthetic {images}",
            **parts,
        )

    return context.store.get(Dataset, "synthetic", work, version=1, settings=images)


def _job(options: Options, *, teaches: bool) -> Job:
    if not teaches:
        return Job(role="baseline", **dict(options.pupil))
    width = options.teacher_width
    return Job(role="teacher", arch=options.teacher, width=width, recipe=options.recipe)


def _prepare(task: Task, dataset: Dataset) -> Setup:
    options, networks = task.options, {}
    for name in ("teacher", "student"):
        job = _job(options, teaches=name == "teacher")
        network = job.network(dataset)
        params = sum(parameter.numel() for parameter in network.parameters())
        macs = evaluation.count_macs(network, dataset.input) / 1e6
        stem = f", stem stride {options.stem_stride}" if name == "student" else ""
        size = f"{params:,} parameters, {macs:.1f} M MACs"
        networks[name] = f"{job.arch} ×{job.width:g}{stem}, {size}"
    size = min(options.batch, dataset.train.n)
    return Setup(
        data=dataset.line,
        images=dataset.train.n // size * size,
        networks=networks,
        threads=options.threads or cores(),
        device=devices.where(devices.pick_device(options.device)),
    )


def _ours(task: Task, dataset: Dataset) -> Timing:
    """The pipeline's own stages."""
    options = task.options
    context = Context(store=Store(task.home), device=options.device, threads=options.threads)
    if task.kind == "baseline":
        made = Baseline().run(context, options.pupil, dataset)
        assert made is not None
    elif task.kind == "teacher":
        teach = Teach(arch=options.teacher, width=options.teacher_width, recipe=options.recipe)
        made = teach.run(context, dataset)
    else:
        views = options.views if task.kind == "kept" else 0
        guide = _teacher(task, dataset, context)
        made = Distill(views=views).run(context, options.pupil, guide, dataset)
    answers = [Store.load(Answers, home) for home in (task.home / "answers").glob("*")]
    return Timing(
        side="ours",
        kind=task.kind,
        images_per_second=tuple(epoch.images_per_second or 0.0 for epoch in made.history),
        peak_bytes=max(epoch.memory_bytes or 0 for epoch in made.history),
        epoch_peak_bytes=tuple(epoch.memory_bytes for epoch in made.history),
        view_seconds=tuple(each.seconds for each in answers if each is not None),
        precision=made.precision,
        weights=made.weights_path,
    )


def _teacher(task: Task, dataset: Dataset, context: Context) -> Checkpoint:
    """The teacher that the first process trained."""
    options = task.options
    given = Teach(arch=options.teacher, width=options.teacher_width, checkpoint=task.weights)
    return given.run(context, dataset)


def _usual(task: Task, dataset: Dataset) -> Timing:
    """The usual loop; on CUDA with PyTorch's own defaults, TF32 among them."""
    options, teacher = task.options, None
    torch.manual_seed(0)
    torch.set_num_threads(options.threads or cores())
    torch.backends.cudnn.benchmark = True
    device = devices.pick_device(options.device)
    network = _job(options, teaches=task.kind == "teacher").network(dataset).to(device)
    if task.kind == "live":
        context = Context(store=Store(task.home))
        teacher = models.load(_teacher(task, dataset, context)).network.to(device).eval()
    recipe, images = options.recipe, open_split(dataset, "train")
    pictures = usual.Pictures(images, dataset.input, task.limit, recipe.augment.crop_padding)
    loader = usual.loading(pictures, recipe.batch_size, task.workers, device)
    rates = {"rate": recipe.learning_rate, "decay": recipe.weight_decay}
    speeds = usual.speeds(loader, network, teacher, device, recipe.epochs, **rates)
    peak = devices.peak_memory(device) if device.type == "cuda" else peak_rss()
    return Timing(side="usual", kind=task.kind, images_per_second=tuple(speeds), peak_bytes=peak)


def main() -> None:
    """The fresh process: one line of JSON, or an error's message and remedy with exit code 2."""
    task = Task.model_validate_json(sys.argv[1])
    try:
        print(_child(task).model_dump_json())
    except PipelineError as error:
        print("\t".join([" ".join(error.message.split()), " ".join(error.remedy.split())]))
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # the process around this one says so
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
