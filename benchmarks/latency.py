"""Latency of one file: a fresh process that does nothing else (`benchmarks.worker`), while this one
waits."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.profiles import Profile
from benchmarks.steadiness import Conditions, half_width
from pipeline.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent
SMALL_MS = 0.1
"""Below it what measuring itself takes is a share worth telling."""
TIMEOUT = 600
"""Seconds after which a process that measures is given up."""


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
    """Half the 95 % interval of their median, as a share of it; inf for too few samples."""
    conditions: Conditions
    in_force: dict[str, str]
    """The options that runtime and system say they obey, by name."""
    peak_rss_bytes: int
    """Of the whole process, runtime and images included."""
    host: str

    def noisy(self, profile: Profile) -> str | None:
        """Why the median is not known as well as `profile` wants; None where it is."""
        if self.half_width <= profile.width:
            return None
        doubts = "; ".join(self.conditions.doubts) or "the host shows no reason"
        return (
            f"p50 is known to ±{self.half_width:.1%} only, and ±{profile.width:.1%} was wanted "
            f"({len(self.samples_ns):,} samples; {doubts})"
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

    Raises `PipelineError` with the child's last words where it fails, and says so where it went
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
    if len(runs) == 1:
        return runs[0]
    samples = [sample for run in runs for sample in run.samples_ns]
    middle = sorted(runs, key=lambda run: run.load_ms)[len(runs) // 2]
    return middle.model_copy(update={"samples_ns": samples, "half_width": half_width(samples)})


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
        _write_empty(path)
        found = measure("onnx_runtime", path, np.zeros((1, 1, 1, 1), np.uint8), profile)
    return float(np.median(found.samples_ns)) / 1e6


def _write_empty(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    taken = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 1, 1])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 1, 1])
    node = helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "empty", [taken], [given])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


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

    Raises `PipelineError` with its last words where `doing` that fails.
    """
    command = [sys.executable, "-m", module, *words]
    try:
        done = subprocess.run(
            command, input=images.tobytes(), capture_output=True, cwd=ROOT, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise PipelineError(
            f"{doing} did not end within {timeout:g} s",
            remedy="Is the machine overloaded? Choose a profile with fewer samples.",
        ) from None
    if done.returncode == 0:
        return done.stdout.splitlines()[-1]
    said = done.stderr.decode(errors="replace").strip().splitlines()
    last, how = said[-1] if said else "no message", _ending(done.returncode)
    if memory_limit_mb is not None and _out_of_memory(done.returncode, last):
        raise PipelineError(
            f"{doing} took more memory than the profile's {memory_limit_mb} MB ({how}: {last})",
            remedy="Raise its memory_limit_mb, or ship a smaller file.",
        )
    raise PipelineError(
        f"{doing} failed ({how}): {last}",
        remedy=f"Run it by hand to see all of it: {' '.join(command)} < images",
    )


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _out_of_memory(code: int, last: str) -> bool:
    """Whether a process under a memory limit ended because of it."""
    words = ("memoryerror", "bad_alloc", "out of memory", "allocat", "cannot allocate")
    return code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV) or any(
        word in last.lower() for word in words
    )


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
