"""What an inference of an ONNX file costs in instructions: a latency without noise.

Valgrind's callgrind executes a fresh process (`benchmarks.counted`) and counts. The count is equal
from run to run, so that a build can be held to it. What made counts differ is left out:

- Everything but ONNX Runtime's own code: Python; the allocator, whose way depends on what was
  allocated before; copying and filling memory, where callgrind counts a byte as an instruction on
  a way that is taken by address. Some 3 % of an inference of 1 M instructions, 1 % of a large one.
- Functions that take less than a `LEAST_SHARE`th of it, 1 % in all: ONNX Runtime looks values up
  by address, and draws up the times of its inferences when 2, 4, 8, ... s have gone by.
- Other threads, and all but the least of three inferences, for the same reasons.

It is no latency. Valgrind shows a CPU with AVX2 on every host that has it, never AVX-512 or VNNI:
what is counted are the kernels for such a CPU, and for int8 these are not the host's or a phone's.
An instruction does up to 16 multiply-adds or none, and waits for memory are free. To be compared
with a count whose `how` is the same.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.counted import MARK, THREAD, Answer
from benchmarks.latency import QUIET, ROOT, TIMEOUT
from pipeline.errors import CannotRunHereError, ExportError, NotInstalledError, PipelineError

COUNTED = "onnxruntime"
"""In the name of the libraries whose instructions count."""
LEAST_SHARE = 2000
"""A function that takes less than one such part of the instructions is bookkeeping."""
KEPT = ("LD_LIBRARY_PATH", "VALGRIND_LIB")
"""Of the environment no more than programs need to start: its size moves what is allocated."""
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **QUIET}
"""No threads of NumPy's, and not the one that ONNX Runtime otherwise starts when it is imported:
it wakes up by the clock, and allocates."""


class Instructions(BaseModel):
    """A count for one image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_inference: int
    """Instructions of one thread in ONNX Runtime's own code, without its bookkeeping."""
    how: str
    """By what they were counted, and on which CPU as ONNX Runtime sees it."""


def count(path: Path, *, timeout: float = TIMEOUT) -> Instructions:
    """Count the .onnx or .ort file at `path`, on one image of noise, with one thread.

    Some 5 s, and for float32 some 5 s more for each 25 M multiply-adds, because valgrind works out
    a fused multiply-add in software.

    Raises `UnavailableError` where valgrind is missing or this is no Linux on x86-64, `ExportError`
    for no ONNX file and one without a fixed image size, `PipelineError` where counting failed or
    did not end within `timeout` seconds.
    """
    tool = _valgrind()
    with tempfile.TemporaryDirectory() as folder:
        dumps = Path(folder)
        answer = _run(tool, path, dumps, timeout)
        files = dumps.glob(f"dump.*-{THREAD:02}")
        texts = [file.read_text(errors="replace") for file in files]
    counts = [_counted(text) for text in texts if f"Trigger: Client Request: {MARK}\n" in text]
    if not any(counts):
        raise PipelineError(
            f"counting {path}: callgrind saw no instruction of ONNX Runtime",
            remedy="Its dumps may have changed: see `_counted`, and try valgrind 3.19.",
        )
    shown = f"x86-64 as valgrind shows it ({answer.vectors})"
    how = f"callgrind {_version(tool)}, {shown}, onnxruntime {version('onnxruntime')}, 1 thread"
    return Instructions(per_inference=min(counts), how=how)


def _valgrind() -> str:
    """Where valgrind is. Raises `UnavailableError`."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise CannotRunHereError(
            f"instructions are counted on Linux on x86-64 alone, and this is {platform.platform()}",
            remedy="Count there; the number is the same on all such machines with AVX2.",
        )
    found = shutil.which("valgrind")
    if found is None:
        raise NotInstalledError(
            "`valgrind`, which counts instructions, is not installed",
            remedy="Install it with the system's packages, such as: apt-get install valgrind",
        )
    return found


def _version(tool: str) -> str:
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip().removeprefix("valgrind-")


def _run(tool: str, path: Path, dumps: Path, timeout: float) -> Answer:
    """Have the process counted; callgrind's dumps are then in the folder `dumps`."""
    command = [
        tool,
        "--tool=callgrind",
        "--instr-atstart=no",
        "--separate-threads=yes",
        f"--callgrind-out-file={dumps / 'dump'}",
        f"--log-file={dumps / 'log'}",  # apart from what the process says
        *(sys.executable, "-m", "benchmarks.counted", str(path.resolve())),
    ]
    environment = ALONE | {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise PipelineError(
            f"counting the instructions of {path} did not end within {timeout:g} s",
            remedy="Allow more time: float32 takes some 0.3 s a million multiply-adds here.",
        ) from None
    try:
        answer = Answer.model_validate_json((done.stdout.splitlines() or [b""])[-1])
    except ValidationError:
        log = dumps / "log"
        said = done.stderr.decode(errors="replace") or (log.read_text() if log.exists() else "")
        last = (said.strip().splitlines() or ["no message"])[-1]
        raise PipelineError(
            f"counting the instructions of {path} failed (exit code {done.returncode}): {last}",
            remedy="Does `valgrind python -c 'import onnxruntime'` run here?",
        ) from None
    if answer.refused:
        raise ExportError(*answer.refused)
    return answer


def _counted(dump: str) -> int:
    """Instructions of ONNX Runtime's own in one dump of callgrind's, but for bookkeeping."""
    functions = Counter[tuple[str, str]]()
    for library, function, cost in _costs(dump):
        if COUNTED in Path(library).name:
            functions[library, function] += cost
    least = functions.total() / LEAST_SHARE
    return sum(cost for cost in functions.values() if cost >= least)


def _costs(dump: str) -> Iterator[tuple[str, str, int]]:
    """Library, function and instructions of each of the dump's own costs.

    Its lines: `ob=(id) path` with the path the first time, for the library that the next lines are
    of; `fn=(id)` for the function; `cob=` for the library of a function that is called; `calls=`
    before a line that sums up what a call took, which counts where it was spent; and lines of a
    position and a cost.
    """
    libraries, library, function, lines = dict[str, str](), "", "", iter(dump.splitlines())
    for line in lines:
        if named := re.fullmatch(r"(c?)ob=\((\d+)\)(?: (.*))?", line):
            called, key, path = named.groups()
            if path:
                libraries[key] = path
            library = library if called else libraries[key]
        elif line.startswith("fn="):
            function = line.partition(" ")[0]
        elif line.startswith("calls="):
            next(lines)
        elif re.fullmatch(r"[+\-*\d]\S* \d+", line):
            yield library, function, int(line.split()[1])
