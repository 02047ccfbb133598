"""The fresh process of a latency measurement: it loads one file, times it, and does nothing else.

Run by `benchmarks.latency`, which waits. Time is `time.perf_counter_ns`; the last line printed is
the `Timing` as JSON.
"""

import os
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import runtime
from benchmarks.latency import Task, Timing, passing_on, peak_rss
from benchmarks.profiles import Profile
from benchmarks.steadiness import BLOCKS, Watch, half_width
from pipeline.machine import cores, cpu_name

ROUND = 0.25
"""Seconds between two looks at how well the median is known."""
TUNED = ("arena", "spinning", "graph_optimization")
"""Keys of a profile that mean something to ONNX Runtime alone."""
IGNORED = "ignored"
"""Under this name such keys stand among the options in force, where another runtime ran."""


def main() -> None:
    """Time the file that the task on the command line names, on the images from standard input."""
    with passing_on():
        print(timed(Task.model_validate_json(sys.argv[1])).model_dump_json())


def timed(task: Task) -> Timing:
    """What the `task` asks for. Raises `PipelineError` where the file cannot be loaded."""
    profile = task.profile
    settle(profile)
    pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(task.shape)
    starts = range(0, len(pixels), profile.batch)
    batches = [_batch(pixels, start, profile.batch) for start in starts]
    module = runtime.load(task.runtime)
    module.warm_import()
    if profile.memory_limit_mb:
        limit_memory(profile.memory_limit_mb)
    watch = Watch()
    started = time.perf_counter_ns()
    session = open_session(module, task)
    loaded = time.perf_counter_ns()
    batches = prepared(session, batches)
    ready = time.perf_counter_ns()
    session.run(batches[0])
    first = time.perf_counter_ns()
    cold = profile.processes > 1  # then all is over with the first answer
    if not cold:
        warm_up(session, batches, profile)
        watch = Watch()
    peak = peak_rss()
    samples = (
        array("q", [first - ready + loaded - started])
        if cold
        else collect(session, batches, profile)
    )
    return Timing(
        runtime=session.name,
        load_ms=(loaded - started) / 1e6,
        first_ms=(first - ready) / 1e6,
        samples_ns=samples.tolist(),
        half_width=half_width(samples),
        conditions=watch.conditions(),
        in_force=_of_runtime(module, session, profile) | _of_process(),
        peak_rss_bytes=peak,
        host=cpu_name(),
    )


def prepared(session: runtime.Session, batches: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
    """What the file takes for these images: our part of the work, which no clock counts."""
    prepare = getattr(session, "prepared", lambda batch: batch)
    return [prepare(batch) for batch in batches]


def settle(profile: Profile) -> None:
    """Keep this process to the CPUs that the profile names."""
    if profile.affinity:
        os.sched_setaffinity(0, profile.affinity)


def open_session(module: runtime.Runtime, task: Task) -> runtime.Session:
    """A session under the profile's options, where the runtime has such."""
    threads = _threads(task.profile)
    tuned = getattr(module, "open_tuned", None)
    if tuned is None:
        return module.open(Path(task.path), threads)
    profile = task.profile
    return tuned(
        Path(task.path),
        threads,
        arena=profile.arena,
        spinning=profile.spinning,
        optimization=profile.graph_optimization,
    )


def _threads(profile: Profile) -> int:
    """How many the runtime is asked for: 0 stands for the CPUs that this process is kept to."""
    return profile.threads or cores()


def _of_runtime(
    module: runtime.Runtime, session: runtime.Session, profile: Profile
) -> dict[str, str]:
    """What the runtime confirms, else was asked for; and the keys of the profile it has not."""
    counted = getattr(module, "threads", None)
    found = {"threads": str(counted() if counted else _threads(profile))}
    found |= getattr(session, "in_force", {})
    return found if hasattr(module, "open_tuned") else found | {IGNORED: ", ".join(TUNED)}


def _of_process() -> dict[str, str]:
    """The settings of this process that the system confirms."""
    found = {}
    if hasattr(os, "sched_getaffinity"):
        found["cpus"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    if sys.platform == "linux":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        unlimited = limit == resource.RLIM_INFINITY
        found["memory_limit_mb"] = "none" if unlimited else f"{limit / 1e6:g}"
    return found


def _batch(pixels: NDArray[np.uint8], start: int, size: int) -> NDArray[np.uint8]:
    """`size` of the images, from `start` on and round in them, [size, height, width, channels]."""
    return np.ascontiguousarray(pixels[np.arange(start, start + size) % len(pixels)])


def limit_memory(megabytes: int) -> None:
    """Let this process ask for so much memory and no more; what is beyond fails."""
    import resource

    limit = megabytes * 10**6
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def warm_up(
    session: runtime.Session, batches: Sequence[NDArray[np.uint8]], profile: Profile
) -> None:
    """Inferences that do not count; the first was done."""
    until, done = time.perf_counter_ns() + int(profile.warmup_seconds * 1e9), 1
    while done < profile.warmup or time.perf_counter_ns() < until:
        session.run(batches[done % len(batches)])
        done += 1


def collect(
    session: runtime.Session, batches: Sequence[NDArray[np.uint8]], profile: Profile
) -> "array[int]":
    """Nanoseconds of single inferences, until their median is known well enough or time is over.

    When time is over, less than `min_samples` do, but no less than their interval takes. Nothing is
    worked out between two samples but once in `ROUND` seconds.
    """
    samples = array("q")  # a list of ints is five times as large
    started = time.perf_counter_ns()
    end = started + int(profile.max_seconds * 1e9)
    look = started + int(min(ROUND, profile.min_seconds) * 1e9)
    while True:
        batch = batches[len(samples) % len(batches)]
        before = time.perf_counter_ns()
        session.run(batch)
        after = time.perf_counter_ns()
        samples.append(after - before)
        if after < look or len(samples) < BLOCKS:
            continue
        if after >= end:
            return samples
        if len(samples) < profile.min_samples:
            continue
        enough = after - started >= profile.min_seconds * 1e9
        if enough and half_width(samples) <= profile.width:
            return samples
        look = min(time.perf_counter_ns() + int(ROUND * 1e9), end)


if __name__ == "__main__":
    main()
