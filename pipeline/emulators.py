"""CPUs that this machine has not, emulated: fetched into a cache folder, and run from there.

The same file can answer differently on another CPU (8-bit sums saturate on x86 without VNNI), so a
second opinion needs another CPU. `pipeline.fetching` fills `home()`::

    bin/, lib/     QEMU's and proot's programs for this machine, out of Debian's packages
    arm64/         the root folder of a small Debian for arm64, with ONNX Runtime in /site
    stamp.json     what was fetched

Without a root folder of its own ONNX Runtime for arm64 would read the host's description of its
CPU, and fail.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    CannotRunHereError,
    ExportError,
    NotInstalledError,
)
from pipeline.machine import package_version

CACHE = "POCKET_DISTILLERY_CACHE"
"""Environment variable: the folder that holds what was fetched, in place of the user's cache."""
COMMAND = "python -m pipeline fetch emulators"
SCHEMA = 1
"""Of the stamp; raise it when what `fetch` makes changes."""
WORKER = Path(__file__).with_name("emulated.py")
ARM = "cortex-a76"
"""A phone's core with the dot-product instructions that ONNX Runtime's int8 kernels use."""
# A core's own features, less those that QEMU lacks and would name on each thread.
HASWELL = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid"


def home() -> Path:
    """Where the emulators lie, fetched or not."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE) or Path(user, "pocket-distillery")).absolute() / "emulators"


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """A Python with NumPy and ONNX Runtime, on another CPU."""

    name: str
    """ONNX Runtime's version, and the CPU."""
    onnxruntime: str
    machine: str
    """What Python calls the CPU."""
    command: tuple[str, ...]
    """Starts its Python."""
    environment: Mapping[str, str]
    root: Path
    """What it sees as "/"."""
    folder: Path
    """Where it can exchange files; below `root`."""

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its Python to the end."""
        with subprocess.Popen(
            [*self.command, *arguments],
            cwd="/",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                said, complained = process.communicate()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # what proot started would outlive it
                process.wait()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


class Session:
    """One ONNX file on an emulated CPU; each call of `run` starts one process."""

    def __init__(self, emulator: Emulator, path: Path, threads: int) -> None:
        if not path.is_file():
            raise ExportError(f"there is no file {path}", "Export the file again.")
        self.name = emulator.name
        self._emulator, self._path, self._threads = emulator, path, threads

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits [n, classes] of uint8 `images` [n, height, width, channels].

        Raises `ExportError` with the last words of the emulated process where it fails.
        """
        emulator = self._emulator
        # A folder a call: any number of them may run at once.
        with tempfile.TemporaryDirectory(dir=emulator.folder, prefix="distillery-") as name:
            folder = Path(name)
            files = [folder / each for each in ("worker.py", "model", "images.npy", "logits.npy")]
            shutil.copyfile(WORKER, files[0])
            shutil.copyfile(self._path, files[1])
            np.save(files[2], images)
            inside = [f"/{file.relative_to(emulator.root)}" for file in files]
            # -P: the folder of the worker is no place to import from.
            done = emulator.python("-P", *inside, str(self._threads))
            if done.returncode or not files[3].is_file():
                raise ExportError(
                    f"{self._path} gave no answer with {self.name}: {last_words(done)}",
                    "Does it answer on this machine's own CPU?",
                )
            said = json.loads(done.stdout.splitlines()[-1])
            wanted = {"onnxruntime": emulator.onnxruntime, "machine": emulator.machine}
            if said != wanted:
                raise ExportError(f"{self.name} is really {said}, not {wanted}")
            return np.load(files[3])


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The end of what a failed process said, without a traceback's lines and apt's warnings."""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in said if not line.startswith((" ", "\t", "Traceback", "W: "))]
    return " ".join(told[-3:]) or f"exit code {done.returncode}, without a word"


def arm64() -> Emulator:
    """ONNX Runtime's build for arm64. Raises `UnavailableError` that says why it is not there."""
    stamp, installed = _stamp(), package_version("onnxruntime")
    if stamp["onnxruntime"] != installed:
        raise NotInstalledError(
            f"what was fetched is stale: it has ONNX Runtime {stamp['onnxruntime']}, "
            f"here {installed} is installed",
            f"Fetch it again: {COMMAND}",
        )
    return arm64_in(home(), stamp)


def arm64_in(there: Path, stamp: Mapping[str, str]) -> Emulator:
    """The emulator for arm64 in the folder `there`, to which `stamp` belongs."""
    root = there / "arm64"
    if (way := way_in(there)) is None:
        raise CannotRunHereError(
            f"neither chroot, nor unshare, nor proot can enter {root} here",
            "Run as root, or allow user namespaces or ptrace.",
        )
    if not os.access(root / "tmp", os.W_OK):
        raise CannotRunHereError(
            f"may not write to {root / 'tmp'}", f"Set {CACHE} to a folder of your own."
        )
    return Emulator(
        name=f"onnxruntime {stamp['onnxruntime']} on arm64 (qemu-aarch64 {stamp['qemu']}, {ARM})",
        onnxruntime=stamp["onnxruntime"],
        machine="aarch64",
        command=(*way, "/qemu", "-cpu", ARM, f"/usr/bin/{stamp['python']}"),
        environment=_environment(there) | {"PYTHONPATH": "/site", "HOME": "/tmp"},
        root=root,
        folder=root / "tmp",
    )


def haswell() -> Emulator:
    """The installed ONNX Runtime on x86-64 that has AVX2 and neither VNNI nor AVX-512.

    Raises `UnavailableError` that says why it is not there.
    """
    return haswell_in(home(), _stamp())


def haswell_in(there: Path, stamp: Mapping[str, str]) -> Emulator:
    """The emulator of a Haswell in the folder `there`, to which `stamp` belongs."""
    version = str(package_version("onnxruntime"))
    return Emulator(
        name=f"onnxruntime {version} on Haswell (qemu-x86_64 {stamp['qemu']})",
        onnxruntime=version,
        machine="x86_64",
        command=(str(there / "bin/qemu-x86_64"), "-cpu", HASWELL, sys.executable),
        # It names the host's kind of core to NumPy's OpenBLAS, whose instructions are not there.
        environment={k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"},
        root=Path("/"),
        folder=Path(tempfile.gettempdir()).resolve(),
    )


def refuse_elsewhere() -> None:
    """Raises `CannotRunHereError` where the emulators cannot be run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        machine = f"{platform.system()} on {platform.machine()}"
        raise CannotRunHereError(f"the emulators need Linux on x86-64; this is {machine}")


def _stamp() -> Mapping[str, str]:
    """What was fetched. Raises `UnavailableError` where nothing was, or nothing can be."""
    refuse_elsewhere()
    try:
        stamp = json.loads((home() / "stamp.json").read_text(encoding="utf-8"))
        if stamp["schema"] == SCHEMA:
            return stamp
        lacks = "what was fetched is of another version of this program"
    except FileNotFoundError:
        lacks = f"not fetched into {home()}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        lacks = f"unreadable: {home() / 'stamp.json'}: {error}"
    raise NotInstalledError(lacks, f"{COMMAND} (needs Debian's apt-get; about 140 MB)")


def _environment(there: Path) -> dict[str, str]:
    """Nothing of the host's but what proot needs: it is loaded before the root is entered."""
    return {"PATH": "/usr/bin", "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": str(there / "lib")}


@cache
def way_in(there: Path) -> tuple[str, ...] | None:
    """The first of `ways_in` that leads in; None where none does."""
    return next((way for way in ways_in(there) if leads_in(there, way)), None)


def ways_in(there: Path) -> list[tuple[str, ...]]:
    """What may be put before a command so that it sees `there`/arm64 as "/", best first."""
    root = str(there / "arm64")
    # Debian keeps it where an ordinary user's PATH does not lead.
    chroot = shutil.which("chroot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    unshare = shutil.which("unshare")
    ways: list[tuple[str, ...]] = [(str(there / "bin/proot"), "-r", root)]
    if chroot and unshare:
        ways.insert(0, (unshare, "-r", chroot, root))
    if chroot and os.geteuid() == 0:
        ways.insert(0, (chroot, root))
    return ways


def leads_in(there: Path, way: tuple[str, ...]) -> bool:
    """Whether this user may go that way: tried with QEMU's version, which takes milliseconds."""
    command = [*way, "/qemu", "--version"]
    environment = _environment(there)
    try:
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0
