"""What this machine is, found out without torch and in milliseconds."""

import ctypes
import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def cpu_name() -> str:
    """The processor's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {cores()} cores, {platform.machine()}"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the processor has bfloat16 arithmetic (AVX512-BF16, AMX, or Arm's bf16)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def cuda_devices() -> int:
    """Number of CUDA GPUs, asked of the driver itself; 0 where there is no driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


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
