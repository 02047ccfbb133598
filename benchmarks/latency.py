"""Latency of one file: a fresh process that does nothing else, while this one waits.

Run as a module it is that process: it loads the file, warms up, times batch-1 inferences with
`time.perf_counter_ns` and prints one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

import runtime
from benchmarks.profiles import Profile
from pipeline.errors import PipelineError
from pipeline.machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent


class Timing(BaseModel):
    """What the fresh process found."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    runtime: str
    """Name and version."""
    load_ms: float
    """From the file to a session that is ready; the runtime's own import is not in it."""
    first_ms: float
    samples_ns: list[int]
    peak_rss_bytes: int
    """Of the whole process, runtime and images included."""
    host: str


def measure(runtime_name: str, path: Path, images: NDArray[np.uint8], profile: Profile) -> Timing:
    """Time the file at `path` on `images` uint8 [n, size, size, channels], one at a time.

    Raises `PipelineError` with the child's last words where it fails.
    """
    options = profile.model_dump().items()
    words = [str(x) for name, value in options for x in (f"--{name.replace('_', '-')}", value)]
    told = in_fresh_process(
        "benchmarks.latency",
        [runtime_name, str(path), *words],
        images,
        f"timing {path} with {runtime_name}",
    )
    return Timing.model_validate_json(told)


def in_fresh_process(
    module: str, words: Sequence[str], images: NDArray[np.uint8], doing: str
) -> bytes:
    """The last line that `module` prints when run with these `words`, --shape and the pixels.

    Raises `PipelineError` with its last words where `doing` that fails.
    """
    shape = ",".join(str(length) for length in images.shape)
    command = [sys.executable, "-m", module, *words, "--shape", shape]
    done = subprocess.run(command, input=images.tobytes(), capture_output=True, cwd=ROOT)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise PipelineError(
            f"{doing} failed (exit code {done.returncode}): {said[-1] if said else 'no message'}",
            remedy=f"Run it by hand to see all of it: {' '.join(command)} < images",
        )
    return done.stdout.splitlines()[-1]


def main() -> None:
    """The fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime")
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--min-samples", type=int, required=True)
    parser.add_argument("--min-seconds", type=float, required=True)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))))
    options = parser.parse_args()
    pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(options.shape)
    images = [pixels[i : i + 1] for i in range(len(pixels))]
    module = runtime.load(options.runtime)
    module.warm_import()
    started = time.perf_counter_ns()
    session = module.open(options.path, options.threads)
    loaded = time.perf_counter_ns()
    session.run(images[0])
    first = time.perf_counter_ns()
    for i in range(options.warmup - 1):
        session.run(images[i % len(images)])
    samples = collect(session, images, options.min_samples, options.min_seconds)
    found = Timing(
        runtime=session.name,
        load_ms=(loaded - started) / 1e6,
        first_ms=(first - loaded) / 1e6,
        samples_ns=samples,
        peak_rss_bytes=peak_rss(),
        host=cpu_name(),
    )
    print(json.dumps(found.model_dump()))


def collect(
    session: runtime.Session,
    images: list[NDArray[np.uint8]],
    min_samples: int,
    min_seconds: float,
) -> list[int]:
    """Nanoseconds of single inferences, until there are enough of them and enough time is over."""
    samples: list[int] = []
    until = time.perf_counter_ns() + int(min_seconds * 1e9)
    while len(samples) < min_samples or time.perf_counter_ns() < until:
        image = images[len(samples) % len(images)]
        before = time.perf_counter_ns()
        session.run(image)
        samples.append(time.perf_counter_ns() - before)
    return samples


def peak_rss() -> int:
    """Largest resident memory of this process in bytes.

    On Linux from /proc: `getrusage` there still counts the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
