"""Measures a run's files on an Android phone at the end of a cable, by a program the user brings.

Known are ONNX Runtime's `onnxruntime_perf_test` and LiteRT's (TensorFlow Lite's) `benchmark_model`.
Everything goes into a fresh folder on the phone, which is removed in any case, and the phone takes
the checksum of each file that it received: the file measured is the file shipped.

**None of this has ever run against a real phone here**: the tests put a stand-in for `adb` in its
place, which behaves as adb's documentation and sources say. Whoever has a phone, please tell what
was different.
"""

import contextlib
import re
import shlex
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.phone.android import (
    CPUS,
    PLACE,
    Device,
    call,
    choose,
    devices,
    end,
    failure,
    mhz_in,
    push,
    shell,
)
from benchmarks.phone.programs import Readings, Tool, libraries, recognise
from pipeline.errors import CannotRunHereError, ConfigError, PipelineError
from pipeline.progress import console, track
from pipeline.store import file_sha256

__all__ = ["Device", "Timing", "choose", "devices", "fitting", "measure"]
RUN_S = 900
"""Seconds for one file to be measured; `benchmark_model` by itself ends after 2 × 150."""


class Timing(Readings):
    """One file on one phone."""

    title: str
    sha256: str
    """Of the file, as the phone took it."""
    binary: str
    """Name and start of the SHA-256 of the program: neither prints its version."""
    arguments: str
    """What it was started with."""
    threads: int
    battery_c: tuple[float | None, float | None]
    """Temperature of the battery in °C, before and after."""
    cpu_mhz: tuple[int, ...]
    """Most MHz that each core was allowed afterwards: less than in `Device` is throttling."""


class Named(Protocol):
    """A file with a name for people, such as `benchmarks.targets.Target`."""

    @property
    def title(self) -> str: ...
    @property
    def path(self) -> Path: ...


F = TypeVar("F", bound=Named)


def fitting(files: Sequence[F], binary: Path, device: Device) -> tuple[list[F], list[str]]:
    """The files that `binary` can run, and why others are left out.

    Raises `ConfigError` for a binary that is unknown or not for `device`, or where none is left.
    """
    tool = recognise(binary, device.abi)
    takes = f"{tool.name} takes {', '.join(tool.suffixes)}"
    fit = [file for file in files if file.path.suffix in tool.suffixes]
    if not fit:
        raise ConfigError(f"none of these files can be measured: {takes}", "Use the other program.")
    others = [file for file in files if file.path.suffix not in tool.suffixes]
    return fit, [f"{file.title}: {takes}" for file in others]


def measure(
    files: Sequence[Named], binary: Path, device: Device, threads: int, runs: int
) -> list[Timing]:
    """Time each of `files` on `device`, one after the other, `runs` inferences with `threads`.

    Raises `ConfigError` for what cannot work, `CannotRunHereError` for what fails on the phone.
    """
    tool = recognise(binary, device.abi)
    if wrong := [file.path for file in files if file.path.suffix not in tool.suffixes]:
        raise ConfigError(f"{tool.name} cannot run {wrong[0]}, only {', '.join(tool.suffixes)}")
    phone = device.serial
    with _folder(phone) as folder:
        push(phone, binary, f"{folder}/{tool.name}")
        for library in libraries(binary):
            push(phone, library, f"{folder}/{library.name}")
        shell(phone, f"chmod 755 {folder}/{tool.name}")
        name = f"{binary.name} {file_sha256(binary)[:12]}"
        return [
            _timing(phone, folder, tool, name, file, threads, runs)
            for file in track(files, "on the phone", len(files))
        ]


def _timing(
    phone: str, folder: str, tool: Tool, binary: str, file: Named, threads: int, runs: int
) -> Timing:
    remote = f"{folder}/model{file.path.suffix}"
    digest = _send(phone, file.path, remote)
    arguments = tool.arguments(remote, threads, runs)
    before, _ = _conditions(phone)
    readings = _run(phone, folder, tool, arguments, file.title)
    after, mhz = _conditions(phone)
    shell(phone, f"rm {remote}")
    return Timing(
        **readings.model_dump(),
        title=file.title,
        sha256=digest,
        binary=binary,
        arguments=shlex.join(arguments).replace(f"{folder}/", ""),
        threads=threads,
        battery_c=(before, after),
        cpu_mhz=mhz,
    )


@contextlib.contextmanager
def _folder(phone: str) -> Iterator[str]:
    """A fresh folder on the phone, which is removed whatever happens."""
    folder = f"{PLACE}/pocket-distillery-{uuid.uuid4().hex[:12]}"
    removal = f"rm -rf {folder}"
    try:
        shell(phone, f"mkdir {folder}")
        yield folder
    finally:
        try:
            left = call("-s", phone, "shell", removal)[0] != 0
        except PipelineError:
            left = True
        if left:
            console.print(
                f"{folder} may still be on the phone. Remove it: adb -s {phone} shell {removal}",
                markup=False,
            )


def _send(phone: str, local: Path, remote: str) -> str:
    """Copy a file, and have the phone take its SHA-256."""
    push(phone, local, remote)
    text = shell(phone, f"sha256sum {remote}")
    ours = file_sha256(local)
    theirs = re.search(r"\b[0-9a-f]{64}\b", text)
    if theirs is None or theirs[0] != ours:
        raise CannotRunHereError(
            f"what arrived on the phone {phone} is not {local}, whose SHA-256 is {ours}; the phone "
            f"says:{end(text)}",
            "Measure again, with another cable or socket if it happens again.",
        )
    return ours


def _conditions(phone: str) -> tuple[float | None, tuple[int, ...]]:
    """Temperature of the battery in °C, and the most MHz that each core is allowed now."""
    text = shell(phone, f"dumpsys battery; cat {CPUS}/scaling_max_freq 2>/dev/null; true")
    tenths = re.search(r"^\s*temperature: (-?\d+)\s*$", text, re.MULTILINE)
    return (int(tenths[1]) / 10 if tenths else None), mhz_in(text)


def _run(phone: str, folder: str, tool: Tool, arguments: list[str], title: str) -> Readings:
    """What the program says of a file. It leaves its process number, by which it can be ended."""
    program = shlex.join([f"{folder}/{tool.name}", *arguments])
    setting = f"cd {folder}; echo $$ > pid; export LD_LIBRARY_PATH={folder}"
    try:
        code, text = call("-s", phone, "shell", f"{setting}; exec {program}", limit_s=RUN_S)
    except BaseException:  # Ctrl-C, too: what is cut off here still runs there
        with contextlib.suppress(PipelineError):
            call("-s", phone, "shell", f"kill -9 $(cat {folder}/pid)")
        raise
    if code:
        raise failure(phone, f"{tool.name} failed on {title} (exit code {code})", text)
    readings = tool.read(text)
    if readings is None:
        raise CannotRunHereError(
            f"{tool.name} printed nothing about {title} that can be read:{end(text)}",
            "Perhaps its version prints in another form than those that are known; if so, report "
            "what it prints.",
        )
    return readings
