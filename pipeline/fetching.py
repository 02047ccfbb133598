"""Fetches the emulators: Debian's packages and ONNX Runtime's wheel for arm64.

As any user and with nothing of the system touched: apt works with lists, cache and installed
packages (none) of our own, and packages are unpacked, never installed. A fetch is made aside and
renamed; stopped at any instant it leaves what was there before, or nothing.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from pipeline import emulators
from pipeline.errors import CannotRunHereError, StoreError, UnavailableError
from pipeline.machine import package_version
from pipeline.progress import console

TIMEOUT = 600
"""Seconds for one program that fetches or unpacks."""
ROOM = 600 << 20
"""Bytes that a fetch needs at its fullest, and some to spare."""
ON_HOST = ("qemu-user-static", "proot")
ON_ARM = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
"""What Python, NumPy and ONNX Runtime need; apt adds what these need."""
PLATFORMS = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
"""Up to the C library of Debian 12, the oldest release whose Python is new enough."""
DESCRIPTION = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0b\nCPU revision\t: 1\n",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
}
"""`emulators.ARM` as Linux describes it; without it ONNX Runtime warns that the CPU is unknown."""
CONFIG = """\
// Hooks and the indexes of other programs are the system's business.
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {{
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages"; flatMetaKey "Packages"; Optional "0";
  ShortDescription "Packages"; Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  flatDescription "$(RELEASE) Packages";
}};
#clear APT::Architectures;
APT::Architectures {{ {architectures} }};
APT::Architecture {architecture};
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "{apt}"; Dir::State::lists "{apt}/lists"; Dir::State::status "{apt}/status";
Dir::Cache "{apt}"; Dir::Cache::archives "{apt}/{architecture}"; Dir::Log "{apt}";
"""
"""For apt, on top of the system's own settings: its sources, keys and proxies are used."""
REMEDY = (
    "Is there a network, and is this Debian, with sources that have arm64? See "
    "`apt-get update` and `pip config list`."
)


def fetch() -> Path:
    """Fill `emulators.home()`, unless it is filled already, and return it.

    Raises `CannotRunHereError` where it is of no use or Debian's tools are missing,
    `UnavailableError` where something cannot be had, `StoreError` where it cannot be written.
    """
    emulators.refuse_elsewhere()
    tools = ("apt-get", "dpkg")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise CannotRunHereError(
            f"no {' and no '.join(missing)} here: the emulators come out of Debian's packages",
            "Fetch them on Debian.",
        )
    home = emulators.home()
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            for left in home.parent.glob(".fetch-*"):  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            if _is_there():
                console.print(f"The emulators are there already: {home}/", highlight=False)
                return home
            # Asked first: with a full disk apt tries the same again and again.
            if shutil.disk_usage(home.parent).free < ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as aside:
                _fill(Path(aside), home)
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or home}: {error.strerror or error}",
            f"{ROOM >> 20} MB are needed while fetching, less than half of it afterwards. Make "
            f"room there, or set {emulators.CACHE} to another folder.",
        ) from error
    return home


def _is_there() -> bool:
    try:
        emulators.arm64()
    except CannotRunHereError:
        return True  # another fetch would not help
    except UnavailableError:
        return False
    return True


def _fill(aside: Path, home: Path) -> None:
    made, archives = aside / "made", aside / "apt"
    console.print(f"Fetching the emulators into {home}/ (about 140 MB)", highlight=False)
    host = _call("dpkg", "--print-architecture").strip()
    complaints = _lists(archives, host)
    _say("QEMU")
    _programs(_packages(archives, host, ON_HOST, complaints), made)
    _say("Debian for arm64")
    root = made / "arm64"
    for package in _packages(archives, "arm64", ON_ARM, complaints):
        _call("dpkg", "-x", str(package), str(root))
    _furnish(root, made)
    python = (root / "usr/bin/python3").readlink().name
    runtime = str(package_version("onnxruntime"))
    _say(f"ONNX Runtime {runtime} and NumPy for arm64, {python}")
    _wheels(aside / "wheels", root / "site", python.removeprefix("python"), runtime)
    told = _call(str(made / "bin/qemu-aarch64"), "--version")
    stamp = {
        "schema": emulators.SCHEMA,
        "onnxruntime": runtime,
        "qemu": told.split("version ")[1].split()[0],
        "python": python,
    }
    _try_out(made, stamp)
    (made / "stamp.json").write_text(json.dumps(stamp), encoding="utf-8")
    if home.exists():
        home.rename(aside / "stale")
    made.rename(home)


def _say(what: str) -> None:
    console.print(f"  {what}", highlight=False)


def _lists(apt: Path, host: str) -> str:
    """Fetch the lists of packages for the host and for arm64. Returns what apt complained of."""
    for architecture in (host, "arm64"):
        (apt / architecture / "partial").mkdir(parents=True)
    (apt / "lists/partial").mkdir(parents=True)
    (apt / "status").touch()
    _say(f"Package lists ({host}, arm64)")
    config = _config(apt, host, "arm64")
    done = _run("apt-get", "--config-file", str(config), "update")
    # A source that has nothing for us may fail: whether all is there shows later.
    return " ".join(done.stderr.splitlines()[:2])


def _config(apt: Path, *architectures: str) -> Path:
    path = apt / f"{'-'.join(architectures)}.conf"
    names = " ".join(f'"{name}";' for name in architectures)
    text = CONFIG.format(apt=apt, architecture=architectures[0], architectures=names)
    path.write_text(text, encoding="utf-8")
    return path


def _packages(apt: Path, architecture: str, names: tuple[str, ...], complaints: str) -> list[Path]:
    """Download packages and all that they depend on; nothing is installed."""
    options = ("--yes", "--download-only", "--no-install-recommends")
    config = str(_config(apt, architecture))
    done = _run("apt-get", "--config-file", config, "install", *options, *names)
    if done.returncode:
        said = f"{emulators.last_words(done)} {complaints}".strip()
        raise UnavailableError(
            f"cannot download {', '.join(names)} ({architecture}): {said}", REMEDY
        )
    return sorted((apt / architecture).glob("*.deb"))


def _programs(packages: list[Path], made: Path) -> None:
    """Keep, of the host's packages, the few programs that are needed."""
    unpacked = made.with_name("unpacked")
    for package in packages:
        _call("dpkg", "-x", str(package), str(unpacked))
    for folder in ("bin", "lib", "arm64"):
        (made / folder).mkdir(parents=True)
    for cpu in ("aarch64", "x86_64"):
        # From Debian 13 on the static ones have the plain name.
        names = [unpacked / "usr/bin" / f"qemu-{cpu}{end}" for end in ("-static", "")]
        shutil.copy(next(filter(Path.exists, names), names[0]), made / "bin" / f"qemu-{cpu}")
    shutil.copy(unpacked / "usr/bin/proot", made / "bin")
    for library in unpacked.glob("usr/lib/*/libtalloc.so.2"):
        shutil.copy(library, made / "lib")
    shutil.rmtree(unpacked)  # emulators of all kinds of CPU, 380 MB


def _furnish(root: Path, made: Path) -> None:
    """What a root folder needs beside its packages."""
    for name in ("bin", "lib", "sbin"):  # links since Debian 13, and no package's own
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name, text in DESCRIPTION.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)  # others may use what one has fetched
    shutil.copy(made / "bin/qemu-aarch64", root / "qemu")


def _wheels(folder: Path, site: Path, python: str, runtime: str) -> None:
    """Unpack the wheels. NumPy only carries the arrays: its version decides nothing."""
    options = ("--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}")
    what = (f"onnxruntime=={runtime}", "numpy")
    _call(
        *(sys.executable, "-m", "pip", "download", *options, "--implementation=cp"),
        *(*PLATFORMS, f"--dest={folder}", *what),
    )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)


def _try_out(made: Path, stamp: dict[str, str]) -> None:
    """Start both once. That compiles arm64's modules, too, and later starts are quicker."""
    _say("Trying them out")
    for make in (emulators.haswell_in, emulators.arm64_in):
        try:
            emulator = make(made, stamp)
        except CannotRunHereError as error:
            _say(f"{error.message}; the other works. {error.remedy}")
            continue
        done = emulator.python("-c", "import onnxruntime")
        if done.returncode:
            said = emulators.last_words(done)
            raise UnavailableError(f"{emulator.name} does not start: {said}", REMEDY)


def _call(*command: str) -> str:
    """What `command` prints. Raises `UnavailableError` with what it says where it fails."""
    done = _run(*command)
    if done.returncode:
        shown = " ".join(command[:4])
        raise UnavailableError(f"`{shown} …` failed: {emulators.last_words(done)}", REMEDY)
    return done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        shown = " ".join(command[:4])
        raise UnavailableError(f"`{shown} …` took more than {TIMEOUT} s", REMEDY) from None
