"""How long an epoch of a student takes here, from a few steps of it on noise.

For `--minutes` alone: which networks are worth starting depends on what the time is enough for. On
a CPU one thread's processor time is taken and shared among the threads, for on a busy host the
threads of a step wait for one another, and its wall time may be ten times as long. An estimate is
kept for the question it was made for, which goes on with the same plan after an interruption.
"""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.config import Config
from pipeline.context import Context
from pipeline.fit.space import Network
from pipeline.machine import cpu_name
from pipeline.records import Dataset, Result

WARM, TIMED = 1, 5
"""Steps before the first timed one, and timed steps, of which the fastest counts."""
SHARED = 0.7
"""Share of an epoch's time that such steps explain; the rest is threads, batches and validation.

Of quick's student, MobileNetV2 ×0.5, on two cores: 5.8 of 8.0 s with a stem of stride 2, 15.0 of
21.6 s with 1."""


class Speed(Result):
    """The pace of one network on this machine."""

    step_seconds: float
    """Of one update: forward, backward, optimizer; of one thread on a CPU."""
    epoch_seconds: float
    """Of a pass over the training split, with all threads."""


def of(
    config: Config, network: Network, dataset: Dataset, context: Context, question: str
) -> Speed:
    """The pace of `network` under the recipe of `config`; the stored one of this `question`."""
    facts = context.training_facts() | {"host": cpu_name(), "question": question}
    return context.store.get(
        Speed,
        "fit-speed",
        lambda folder: _time(config, network, dataset, context, folder),
        version=1,
        settings={"network": network, "recipe": config.student.recipe, "threads": context.threads},
        parents=[dataset],
        facts=facts,
    )


def _time(
    config: Config, network: Network, dataset: Dataset, context: Context, folder: Path
) -> Speed:
    del folder  # it has no files
    import torch
    from torch.nn.functional import cross_entropy

    from models.classifier import Classifier
    from pipeline.devices import autocast, pick_precision, prepare
    from pipeline.jobs import Job
    from pipeline.optimizing import make_optimizer

    recipe, device = config.student.recipe, prepare(context)
    job = Job(role="student", **dict(network.student(config)))
    spec = dataset.input.model_copy(update={"size": network.size})
    sized = dataset.model_copy(update={"input": spec})
    built = job.network(sized)
    dtype = pick_precision(recipe, built, device)
    model = Classifier(built, spec).to(device).to(memory_format=torch.channels_last).train()
    fused = device.type in ("cpu", "cuda")
    optimizer = make_optimizer(built, recipe, fused=fused, head=(), body_rate=1.0)
    size = min(recipe.batch_size, dataset.train.n)
    shape = (size, spec.size, spec.size, spec.channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, len(dataset.labels), (size,), device=device)
    on_cpu = device.type == "cpu"
    threads, clock = torch.get_num_threads(), time.process_time if on_cpu else time.perf_counter
    if on_cpu:
        torch.set_num_threads(1)  # trainings set it anew
    spent = []
    for _ in range(WARM + TIMED):
        since = clock()
        with autocast(device, dtype):
            loss = cross_entropy(model(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for a GPU
        spent.append(clock() - since)
    step = min(spent[WARM:])
    steps, together = dataset.train.n // size, threads if on_cpu else 1
    return Speed(step_seconds=step, epoch_seconds=step * steps / together / SHARED)
