"""A phone at the end of a cable, through `adb`: which there are, what they say, what goes wrong."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.errors import CannotRunHereError, ConfigError, NotInstalledError, PipelineError

PLACE = "/data/local/tmp"
"""The one place of every Android where a cable may put a program and start it."""
ANSWER_S = 30
"""Seconds that the phone has for a small question."""
PUSH_S = 300
"""Seconds for one file to be copied."""
LAST_LINES = 8
"""Lines that are shown of a program that failed."""
PROPERTIES = {
    "model": "ro.product.model",
    "android": "ro.build.version.release",
    "abi": "ro.product.cpu.abi",
    "soc": "ro.soc.model",  # since Android 12
    "board": "ro.board.platform",
    "emulated": "ro.kernel.qemu",
}
CPUS = "/sys/devices/system/cpu/cpu*/cpufreq"
STATES = {
    "unauthorized": "Unlock the phone and accept its dialog `Allow USB debugging?`; if there is "
    "none, unplug it, run `adb kill-server` and plug it in again.",
    "offline": "Unplug the phone and plug it in again; if it stays offline, run `adb kill-server` "
    "or restart the phone.",
    "no permissions": "This user may not open the USB device: install the udev rules for Android "
    "phones, and plug it in again.",
}
"""What to do about a phone that adb lists and cannot use."""


class Device(BaseModel):
    """A phone that answers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    serial: str
    model: str
    android: str
    """Version, such as "15"."""
    abi: str
    """What programs it runs: "arm64-v8a"."""
    soc: str
    """Name of its chip; of its board, where Android is older than 12; "" where it tells neither."""
    cpu_mhz: tuple[int, ...] = ()
    """Most MHz of each core by its maker; empty where the phone does not tell."""
    emulated: bool = False
    """An emulator: its times say nothing of any phone."""


def call(*arguments: str, limit_s: float = ANSWER_S) -> tuple[int, str]:
    """Exit code and all output of an adb command. `NotInstalledError` without adb.

    In a session of its own: Ctrl-C shall stop the measuring, and not what cleans up after it.
    """
    if not (adb := shutil.which("adb")):
        raise NotInstalledError(
            "the program `adb` is not on PATH",
            "It is part of the Android SDK Platform-Tools: install those (Debian and Ubuntu: "
            "apt-get install adb; macOS: brew install android-platform-tools).",
        )
    try:
        done = subprocess.run(
            [adb, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunHereError(
            f"no end of `adb {shlex.join(arguments)}` within {limit_s:g} s",
            "If it measured: ask for fewer runs. Else look at the phone, and plug it in again.",
        ) from error
    return done.returncode, done.stdout.decode(errors="replace").replace("\r", "")


def _states() -> dict[str, str]:
    """What adb lists, by serial number, each with its state."""
    code, text = call("devices", "-l")
    head, found, lines = text.partition("List of devices attached")
    if code or not found:
        raise CannotRunHereError(
            f"adb cannot list phones:{end(head)}", "Try: adb kill-server; adb devices"
        )
    rows = (re.match(r"(\S+)\s+(no permissions|\S+)", line) for line in lines.splitlines())
    return {row[1]: row[2] for row in rows if row}


def _unusable(serial: str, state: str) -> PipelineError:
    remedy = STATES.get(state, "Start Android on it, and plug it in again.")
    return CannotRunHereError(f"the phone {serial} cannot be used: adb calls it `{state}`", remedy)


def _device(serial: str) -> Device:
    asked = " ".join(f"echo {key}=$(getprop {name});" for key, name in PROPERTIES.items())
    text = shell(serial, f"{asked} cat {CPUS}/cpuinfo_max_freq 2>/dev/null; true")
    told = dict(re.findall(r"^(\w+)=(.*?)\s*$", text, re.MULTILINE))
    return Device(
        serial=serial,
        model=told.get("model") or "unknown model",
        android=told.get("android") or "unknown",
        abi=told.get("abi") or "unknown",
        soc=told.get("soc") or told.get("board") or "",
        cpu_mhz=mhz_in(text),
        emulated=told.get("emulated") == "1" or serial.startswith("emulator-"),
    )


def mhz_in(text: str) -> tuple[int, ...]:
    """The lines of `text` that are kHz and nothing else."""
    return tuple(int(khz) // 1000 for khz in re.findall(r"^(\d+)\s*$", text, re.MULTILINE))


def devices() -> list[Device]:
    """All phones that can be used, at least one.

    Raises `NotInstalledError` without adb, `CannotRunHereError` where none can be used.
    """
    states = _states()
    if ready := [serial for serial, state in states.items() if state == "device"]:
        return [_device(serial) for serial in ready]
    for serial, state in states.items():
        raise _unusable(serial, state)
    raise CannotRunHereError(
        "no phone is plugged in",
        "Switch on USB debugging in the phone's developer options, and connect it with a cable "
        "that carries data; `adb devices` must list it.",
    )


def choose(serial: str | None = None) -> Device:
    """The phone of that serial number, or the only one. Raises as `devices`, and `ConfigError`."""
    states = _states() if serial else {}
    if serial in states and states[serial] != "device":
        raise _unusable(serial, states[serial])
    found = devices()
    chosen = [each for each in found if serial in (None, each.serial)]
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(f"{each.serial} ({each.model})" for each in found)
    raise ConfigError(
        f"no phone has the serial number {serial}" if serial else f"{len(found)} phones are there",
        f"Choose one with --serial: {there}.",
    )


def shell(phone: str, command: str, limit_s: float = ANSWER_S) -> str:
    """What `command` prints on the phone. Raises `CannotRunHereError` where it fails."""
    code, text = call("-s", phone, "shell", command, limit_s=limit_s)
    if code:
        raise failure(phone, f"the phone {phone} failed at `{command}` (exit code {code})", text)
    return text


def push(phone: str, local: Path, remote: str) -> None:
    """Copy a file to the phone. Raises `CannotRunHereError` where that fails."""
    code, text = call("-s", phone, "push", str(local), remote, limit_s=PUSH_S)
    if code:
        raise failure(phone, f"{local} could not be copied to the phone {phone}", text)


def failure(phone: str, message: str, text: str) -> PipelineError:
    """What went wrong, with the last lines of the output, after a look whether the phone is there.

    That look decides, for adb has many words and exit codes for a phone that is gone.
    """
    if "No space left" in text:
        return CannotRunHereError(
            f"{message}: there is no space left in {PLACE}", "Make room on the phone."
        )
    state = _state(phone)
    if state != "device":
        return CannotRunHereError(
            f"the phone {phone} does not answer any more ({state}); before that, {message}",
            STATES.get(state, "Look at the cable, plug the phone in again, and start once more."),
        )
    remedy = "Try the same by hand; the last lines are its own."
    if "CANNOT LINK EXECUTABLE" in text:
        remedy = "Put the library beside the program: it is taken along then."
    return CannotRunHereError(f"{message}; its last lines:{end(text)}", remedy)


def _state(phone: str) -> str:
    try:
        return _states().get(phone, "unplugged")
    except PipelineError:
        return "unplugged"


def end(text: str) -> str:
    """The last lines of `text`, to stand behind a colon."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "".join(f"\n  {line}" for line in lines[-LAST_LINES:]) or " (nothing)"
