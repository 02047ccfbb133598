"""The two programs that measure a file on a phone: how they are started, and what they print.

Learnt from their sources (microsoft/onnxruntime: onnxruntime/test/perftest; google-ai-edge/LiteRT:
tflite/tools/benchmark, litert/tools) and from output that others published. Only what a program
prints is told; what it does not print is None.
"""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigError

MACHINES = {
    (2, 183): "arm64-v8a",
    (1, 40): "armeabi-v7a",
    (2, 62): "x86_64",
    (1, 3): "x86",
    (2, 243): "riscv64",
}
"""Android's names for the class and machine in an ELF header."""


INTERPRETER = 8192
"""Bytes at the head of an executable that hold the name of its loader."""


class Readings(BaseModel):
    """What a program printed; None is what it does not print."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    runtime: str
    """What answered, as far as the output tells."""
    load_ms: float | None = None
    """From the file to a session that can answer."""
    first_ms: float | None = None
    """The first inference; ONNX Runtime's program gives whole milliseconds."""
    p50_ms: float | None = None
    """`benchmark_model` counts whole microseconds; older ones tell no percentiles."""
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    n: int
    """Timed inferences; `benchmark_model` goes on for at least one second."""
    peak_bytes: int | None = None
    """Most memory of the process (ONNX Runtime's program)."""
    grown_bytes: int | None = None
    """By how much that grew since the program began (`benchmark_model`, which says: roughly)."""


class Tool(NamedTuple):
    """A program that measures."""

    name: str
    owner: str
    suffixes: tuple[str, ...]
    mark: bytes
    """Something that stands in every version of it, and in no other program."""
    arguments: Callable[[str, int, int], list[str]]
    """For a file, threads and runs."""
    read: Callable[[str], Readings | None]
    """Makes sense of what it printed; None where there is none in it."""


def _number(pattern: str, text: str, scale: float = 1.0) -> float | None:
    """The last number that stands at the # of `pattern`, times `scale`."""
    found = re.findall(pattern.replace("#", r"(\d[\d.]*(?:[eE][-+]?\d+)?)"), text)
    return round(float(found[-1]) * scale, 6) if found else None


def _read_perf_test(text: str) -> Readings | None:
    """Its wording changed over the years: "P50 Latency is 0.1sec" became "P50 Latency: 0.1 s"."""
    n = _number(r"Total inference requests: *#", text)
    mean = _number(r"Average inference time cost(?: total)?: *# ms", text)
    if not n or mean is None:
        return None
    p50, p90, p95, p99 = (
        _number(rf"P{rank} Latency(?: is|:) *# *s", text, 1e3) for rank in (50, 90, 95, 99)
    )
    peak = _number(r"Peak working set size: *# bytes", text)
    return Readings(
        runtime="ONNX Runtime",
        load_ms=_number(r"Session creation time cost: *# s", text, 1e3),
        first_ms=_number(r"First inference time cost: *# ms", text),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=mean,
        n=int(n),
        peak_bytes=int(peak) if peak else None,
    )


def _read_benchmark_model(text: str) -> Readings | None:
    """It prints a line `count=...` for warming up and one for measuring, in microseconds.

    Its summary has another form in LiteRT than in TensorFlow Lite, rounded to 10 µs; on Android it
    may go to the system's log. These lines are the same in all versions.
    """
    lines = re.findall(r"\bcount=[1-9]\d* (?:first|curr)=.*", text)
    if len(lines) < 2:
        return None
    warm, timed = lines[:2]
    grown = _number(r"(?:\boverall=|Overall footprint: *)#", text, 2**20)

    def ms(name: str, line: str) -> float | None:
        # Where all values are the same, that one stands there alone, as `curr`.
        found = _number(rf"\b{name}=#", line, 1e-3)
        return _number(r"\bcurr=#", line, 1e-3) if found is None else found

    delegate = re.search("XNNPACK delegate|XNNPackDelegate", text)
    return Readings(
        runtime="LiteRT, XNNPACK" if delegate else "LiteRT",
        load_ms=_number(r"Initialized session in # *ms", text),
        first_ms=ms("first", warm),
        p50_ms=_number(r"\bmedian=#", timed, 1e-3),
        p95_ms=_number(r"\bp95=#", timed, 1e-3),
        mean_ms=ms("avg", timed),
        n=int(_number(r"count=#", timed) or 0),
        grown_bytes=int(grown) if grown else None,
    )


def _perf_test_arguments(file: str, threads: int, runs: int) -> list[str]:
    """-I: random input, free dimensions as 1.

    So the batch needs no -f, which would besides fix it for the optimiser: an app's session, and
    those measured elsewhere in this project, have it free.
    """
    return [*f"-I -s -e cpu -m times -r {runs} -x {threads} -y 1".split(), file]


def _benchmark_model_arguments(file: str, threads: int, runs: int) -> list[str]:
    """Warming up is left at its 0.5 s, measuring at its 1 to 150 s; what an app gets by default."""
    return [f"--graph={file}", f"--num_threads={threads}", f"--num_runs={runs}"]


TOOLS = (
    Tool(
        name="onnxruntime_perf_test",
        owner="ONNX Runtime",
        suffixes=(".onnx", ".ort"),
        mark=b"Total inference requests",
        arguments=_perf_test_arguments,
        read=_read_perf_test,
    ),
    Tool(
        name="benchmark_model",
        owner="LiteRT",
        suffixes=(".tflite",),
        mark=b"memory_footprint_check_interval_ms",
        arguments=_benchmark_model_arguments,
        read=_read_benchmark_model,
    ),
)


def recognise(binary: Path, abi: str) -> Tool:
    """Which program `binary` is. Raises `ConfigError` for one unknown, or not for Android's `abi`.

    The content decides before the name, and before anything is on the phone.
    """
    known = " or ".join(f"{tool.owner}'s {tool.name}" for tool in TOOLS)
    wanted = f"Wanted is {known}, built for Android with the ABI {abi}."
    try:
        content = binary.read_bytes()
    except OSError as error:
        raise ConfigError(f"--binary {binary}: {error.strerror}", wanted) from error
    if len(content) < 64 or content[:4] != b"\x7fELF":
        raise ConfigError(f"--binary {binary} is no Android executable: it is no ELF file", wanted)
    (machine,) = struct.unpack_from("<H", content, 18)
    built = MACHINES.get((content[4], machine), f"another processor (ELF machine {machine})")
    if built != abi:
        raise ConfigError(f"--binary {binary} is built for {built}; the phone runs {abi}", wanted)
    if re.search(rb"/lib/ld-(linux|musl)", content[:INTERPRETER]):
        raise ConfigError(f"--binary {binary} is built for Linux, not for Android", wanted)
    for tool in TOOLS:
        if tool.mark in content:
            return tool
    for tool in TOOLS:  # packed, perhaps
        if tool.name in binary.name:
            return tool
    raise ConfigError(f"--binary {binary} is none of the programs that are known", wanted)


def libraries(binary: Path) -> list[Path]:
    """The shared libraries beside `binary` that it, or one of them, names and so will look for."""
    beside = sorted(binary.resolve().parent.glob("lib*.so"))
    found: list[Path] = []
    waiting = [binary]
    while waiting:
        content = waiting.pop().read_bytes()
        named = [each for each in beside if each.name.encode() in content and each not in found]
        found += named
        waiting += named
    return [each for each in found if each != binary]
