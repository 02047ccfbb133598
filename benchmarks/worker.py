"""The fresh process of a latency measurement: it loads one file, times it, and does nothing else.

Run by `benchmarks.latency`, which waits. Time is `time.perf_counter_ns`; the last line printed is
the `Timing` as JSON.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import runtime
from benchmarks.latency import Task, Timing, peak_rss
from benchmarks.profiles import Profile
from benchmarks.steadiness import Watch, half_width
from pipeline.machine import cores, cpu_name

ROUND = 0.25
"""Seconds between two looks at how well the median is known."""


def main() -> None:
    """Time the file that the task on the command line names, on the images from standard input."""
    task = Task.model_validate_json(sys.argv[1])
    profile = task.profile
    settle(profile)
    pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(task.shape)
    starts = range(0, len(pixels), profile.batch)
    batches = [_batch(pixels, start, profile.batch) for start in starts]
    module = runtime.load(task.runtime)
    module.warm_import()
    if profile.memory_limit_mb:
        limit_memory(profile.memory_limit_mb)
    started = time.perf_counter_ns()
    session = open_session(module, task)
    loaded = time.perf_counter_ns()
    session.run(batches[0])
    first = time.perf_counter_ns()
    warm_up(session, batches, profile)
    watch = Watch()
    # A cold start is over with its first answer.
    samples = [first - started] if profile.processes > 1 else collect(session, batches, profile)
    found = Timing(
        runtime=session.name,
        load_ms=(loaded - started) / 1e6,
        first_ms=(first - loaded) / 1e6,
        samples_ns=samples,
        half_width=half_width(samples),
        conditions=watch.conditions(),
        in_force=getattr(session, "in_force", {}) | _of_process(),
        peak_rss_bytes=peak_rss(),
        host=cpu_name(),
    )
    print(found.model_dump_json())


def settle(profile: Profile) -> None:
    """Keep this process to the CPUs that the profile names."""
    if profile.affinity:
        os.sched_setaffinity(0, profile.affinity)


def open_session(module: runtime.Runtime, task: Task) -> runtime.Session:
    """A session under the profile's options, where the runtime has such."""
    threads = task.profile.threads or cores()
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


def _of_process() -> dict[str, str]:
    """The settings of this process that the system confirms."""
    if not hasattr(os, "sched_getaffinity"):
        return {}
    return {"cpus": ",".join(map(str, sorted(os.sched_getaffinity(0))))}


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
) -> list[int]:
    """Nanoseconds of single inferences, until their median is known well enough or time is over.

    Nothing is worked out between two samples but once in `ROUND` seconds.
    """
    samples: list[int] = []
    started = time.perf_counter_ns()
    look = started + int(min(ROUND, profile.min_seconds) * 1e9)
    while True:
        batch = batches[len(samples) % len(batches)]
        before = time.perf_counter_ns()
        session.run(batch)
        after = time.perf_counter_ns()
        samples.append(after - before)
        if after < look or len(samples) < profile.min_samples:
            continue
        seconds = (after - started) / 1e9
        known = seconds >= profile.min_seconds and half_width(samples) <= profile.width
        if known or seconds >= profile.max_seconds:
            return samples
        look = time.perf_counter_ns() + int(ROUND * 1e9)


if __name__ == "__main__":
    main()
