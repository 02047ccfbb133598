"""Latency of one file: a fresh process that does nothing else (`benchmarks.worker`), while this one
waits."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.profiles import Profile
from benchmarks.steadiness import Conditions, half_width_of_few
from pipeline.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}
"""ONNX Runtime's telemetry has a thread that wakes up by the clock, even where it sends nothing."""
SMALL_MS = 0.1
"""Below it what measuring itself takes is a share worth telling."""
TIMEOUT = 600
"""Seconds after which a process that measures is given up."""
FAILED = "pocket-distillery failed: "
"""Begins the line by which a fresh process says why it ends, with message and remedy as JSON."""
TAIL = 5
"""Lines of what it wrote otherwise that are passed on."""
WANT = re.compile(
    r"bad_alloc|MemoryError|(cannot|can't|failed to) allocate memory|out of memory", re.IGNORECASE
)
"""How libraries say that they got no memory."""
KILLED = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV)
"""How a process ends that gets none and cannot say so any more; others end like that, too."""


class Task(BaseModel):
    """What the fresh process is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str
    path: str
    profile: Profile
    shape: tuple[int, ...]
    """Of the images, uint8, that come by standard input."""


class Timing(BaseModel):
    """What the fresh process found."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    runtime: str
    """Name and version."""
    load_ms: float
    """From the file to a session that is ready; the runtime's own import is not in it."""
    first_ms: float
    samples_ns: list[int]
    """In the order in which they were taken; none is left out."""
    half_width: float
    """Half the 95 % interval of their median, as a share of it; inf for too few samples. Of one
    process alone: the next may settle elsewhere."""
    conditions: Conditions
    in_force: dict[str, str]
    """The options that runtime and system say they obey, by name."""
    peak_rss_bytes: int
    """Of the whole process, runtime and images included, until the timed inferences begin: what
    it keeps of those is no memory that the file takes."""
    host: str

    def noisy(self, profile: Profile) -> str | None:
        """Why the median is not known as well as `profile` wants; None where it is.

        Of several processes there are as many as the profile says, however well they agree.
        """
        if profile.processes > 1 or self.half_width <= profile.width:
            return None
        n = f"{len(self.samples_ns):,} samples"
        if len(self.samples_ns) < profile.min_samples:
            n += f" of {profile.min_samples:,}, for {profile.max_seconds:g} s were over"
        doubts = "; ".join(self.conditions.doubts) or "the host shows no reason"
        return (
            f"p50 of this process is known to ±{self.half_width:.1%} only, and "
            f"±{profile.width:.1%} was wanted ({n}; {doubts})"
        )


def measure(
    runtime_name: str,
    path: Path,
    images: NDArray[np.uint8],
    profile: Profile,
    *,
    timeout: float = TIMEOUT,
) -> Timing:
    """Time the file at `path` on `images` uint8 [n, size, size, channels].

    Raises `PipelineError` with the child's own reason where it fails, and says so where it went
    beyond the profile's memory limit or did not end within `timeout` seconds.
    """
    shape = tuple(images.shape)
    task = Task(runtime=runtime_name, path=str(path), profile=profile, shape=shape)
    doing = f"timing {path} with {runtime_name}"
    runs = [
        Timing.model_validate_json(
            in_fresh_process(
                "benchmarks.worker",
                [task.model_dump_json()],
                images,
                doing,
                memory_limit_mb=profile.memory_limit_mb,
                timeout=timeout,
            )
        )
        for _ in range(profile.processes)
    ]
    return runs[0] if len(runs) == 1 else _together(runs)


def _together(runs: Sequence[Timing]) -> Timing:
    """Processes of one sample each as one timing; load and memory are those of the middle load."""
    samples = [sample for run in runs for sample in run.samples_ns]
    middle = sorted(runs, key=lambda run: run.load_ms)[len(runs) // 2]
    return middle.model_copy(
        update={
            "samples_ns": samples,
            "half_width": half_width_of_few(samples),
            "conditions": Conditions.of_all([run.conditions for run in runs]),
        }
    )


def overhead_ms(profile: Profile) -> float:
    """What measuring itself takes: the median for an ONNX file that does next to nothing.

    Python's call, the feed and ONNX Runtime's own fixed costs are in it, and in every latency.
    Measured once a process and profile.
    """
    return _overhead_ms(profile.model_dump_json())


@cache
def _overhead_ms(profile_json: str) -> float:
    profile = Profile.model_validate_json(profile_json)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.onnx")
        path.write_bytes(empty_model())
        found = measure("onnx_runtime", path, np.zeros((1, 1, 1, 1), np.uint8), profile)
    return float(np.median(found.samples_ns)) / 1e6


def empty_model() -> bytes:
    """An ONNX file that does next to nothing, for images of one pixel."""
    import onnx
    from onnx import TensorProto, helper

    taken = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 1, 1])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 1, 1])
    node = helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "empty", [taken], [given])
    opset = [helper.make_opsetid("", 18)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return model.SerializeToString()


def in_fresh_process(
    module: str,
    words: Sequence[str],
    images: NDArray[np.uint8],
    doing: str,
    *,
    memory_limit_mb: int | None = None,
    timeout: float = TIMEOUT,
) -> bytes:
    """The last line that `module` prints when run with these `words` and the pixels as input.

    No bar is redrawn meanwhile. Raises `PipelineError` with its reason where `doing` that fails.
    """
    from pipeline.progress import still  # here: the fresh process has no use for rich

    command = [sys.executable, "-m", module, *words]
    try:
        with still():
            done = subprocess.run(
                command,
                input=images.tobytes(),
                capture_output=True,
                cwd=ROOT,
                timeout=timeout,
                env=os.environ | QUIET,
            )
    except subprocess.TimeoutExpired:
        raise PipelineError(
            f"{doing} did not end within {timeout:g} s",
            remedy="Is the machine overloaded? Choose a profile with fewer samples.",
        ) from None
    if done.returncode == 0:
        return done.stdout.splitlines()[-1]
    raise _failure(doing, done.returncode, done.stderr.decode(errors="replace"), memory_limit_mb)


@contextmanager
def passing_on() -> Iterator[None]:
    """In the fresh process: tell an error of the block to the waiting one, and end with code 1."""
    try:
        yield
    except (PipelineError, MemoryError) as error:
        known = isinstance(error, PipelineError)
        told = [error.message, error.remedy] if known else [f"MemoryError {error}".strip(), ""]
        print(FAILED + json.dumps(told), file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _failure(doing: str, code: int, stderr: str, memory_limit_mb: int | None) -> PipelineError:
    """What to say of a fresh process that ended with `code` and wrote `stderr`."""
    (cause, remedy), how = _said(stderr.strip().splitlines()), _ending(code)
    limit = f"more memory than the profile's {memory_limit_mb} MB"
    if memory_limit_mb is not None and WANT.search(stderr):
        return PipelineError(
            f"{doing} took {limit} ({how}: {cause})",
            remedy="Raise its memory_limit_mb, or ship a smaller file.",
        )
    if memory_limit_mb is not None and code in KILLED:
        return PipelineError(
            f"{doing} failed ({how}): {cause}; perhaps it wanted {limit}",
            remedy="Raise its memory_limit_mb to see whether that is why.",
        )
    return PipelineError(f"{doing} failed ({how}): {cause}", remedy)


def _said(lines: Sequence[str]) -> tuple[str, str]:
    """Why a process ended, by the lines it wrote, and how to mend that, else the last of them."""
    for line in reversed(lines):
        if line.startswith(FAILED):
            message, remedy = json.loads(line.removeprefix(FAILED))
            return message, remedy
    if len(lines) < 2:
        return (lines[0] if lines else "no message"), ""
    starts = [at for at, line in enumerate(lines) if line.startswith("Traceback ")]
    after = lines[starts[-1] + 1 :] if starts else []
    error = next((line for line in after if line.strip() and not line.startswith(" ")), lines[-1])
    return error, "The end of what it wrote:\n" + "\n".join(lines[-TAIL:])


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


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
