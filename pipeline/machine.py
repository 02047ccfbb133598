"""What this machine is, found out without torch and in milliseconds."""

import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
DEVICE_TREE = Path("/proc/device-tree/model")
CGROUP = Path("/sys/fs/cgroup")


@cache
def cpu_name() -> str:
    """The processor's name and the number of cores this process may use.

    Figures are compared only where this is the same, so two kinds of machine must not share it.
    """
    name = _mac_cpu() if sys.platform == "darwin" else linux_cpu(_read(CPUINFO), _read(DEVICE_TREE))
    if not name:
        name = f"{platform.processor() or 'unknown processor'} of {platform.node()}"
    return f"{name}, {cores()} cores, {platform.machine()}"


def _mac_cpu() -> str:
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def linux_cpu(cpuinfo: str, device_tree: str) -> str:
    """The processor's name in /proc/cpuinfo; "" where it cannot be told from others.

    64-bit Arm has no "model name": there it is the board's name in the device tree, else the
    numbers of the kinds of core.
    """
    fields = [
        [x.strip() for x in line.split(":", 1)] for line in cpuinfo.splitlines() if ":" in line
    ]
    if models := [value for key, value in fields if key == "model name" and value]:
        return models[0]
    if board := device_tree.strip("\0 \n"):
        return board
    makers = [value for key, value in fields if key == "CPU implementer"]
    parts = [value for key, value in fields if key == "CPU part"]
    kinds = sorted({f"{maker}/{part}" for maker, part in zip(makers, parts, strict=False)})
    return f"CPU {' + '.join(kinds)}" if kinds else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cores() -> int:
    """Cores this process may use: by its affinity, and by its container's share of CPU time."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Version 2 has one file, version 1 two; a file that is not there reads as no limit.
    limits = [
        _read(CGROUP / "cpu.max"),
        f"{_read(CGROUP / 'cpu/cpu.cfs_quota_us')} {_read(CGROUP / 'cpu/cpu.cfs_period_us')}",
    ]
    return min([there or 1, *(cores for each in limits if (cores := quota_cores(each)))])


def quota_cores(limit: str) -> int | None:
    """Whole cores in a cgroup's "<quota> <period>" of CPU time, at least 1; None if unlimited.

    Rounded down: a thread too many is stopped for the rest of each period.
    """
    words = limit.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None  # "max" in version 2, -1 in version 1
    return max(1, int(words[0]) // int(words[1]))


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the processor has bfloat16 arithmetic (AVX512-BF16, AMX, or Arm's bf16)."""
    return bool(set(_read(CPUINFO).split()) & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def _driver() -> ctypes.CDLL | None:
    """The CUDA driver, not yet initialised."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


@cache
def cuda_devices() -> int:
    """Number of CUDA GPUs, asked of the driver itself; 0 where there is no driver."""
    driver, count = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


@cache
def cuda_name() -> str | None:
    """The first GPU's name, None where there is no GPU."""
    driver = _driver()
    if driver is None or not cuda_devices():
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if driver.cuDeviceGetName(name, len(name), device) else name.value.decode()


@cache
def driver_version() -> str | None:
    """The CUDA version of the driver, such as "12.8"; None where there is no driver."""
    driver, found = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(found)) or not found.value:
        return None
    return f"{found.value // 1000}.{found.value % 1000 // 10}"


def package_version(distribution: str) -> str | None:
    """The installed version of a distribution, None where it is missing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def versions(*distributions: str) -> dict[str, str | None]:
    """Installed versions by distribution."""
    return {name: package_version(name) for name in distributions}


def environment() -> dict[str, str | int | None]:
    """The facts a report states about its host."""
    return {
        "cpu": cpu_name(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cuda_gpus": cuda_devices(),
        **versions("torch", "torchvision", "onnx", "onnxruntime", "coremltools", "numpy"),
    }
