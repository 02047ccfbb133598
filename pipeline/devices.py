"""Where training happens, and in which arithmetic."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.latency import peak_rss
from pipeline.context import Context
from pipeline.errors import CannotRunHereError
from pipeline.machine import cores, cpu_has_bfloat16
from pipeline.settings import Device, Recipe

CLEAR = Path("/proc/self/clear_refs")


def pick_device(wanted: Device) -> torch.device:
    """The device that `wanted` means here; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises `CannotRunHereError` where a device is asked for by name and is not there.
    """
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if wanted == "auto":
        return torch.device(next((name for name, found in there.items() if found()), "cpu"))
    if wanted in there and not there[wanted]():
        raise CannotRunHereError(
            f'device = "{wanted}", and torch {torch.__version__} finds none on this machine',
            remedy='Use device = "auto" or "cpu", or install a driver and a torch that fit it.',
        )
    return torch.device(wanted)


def pick_precision(recipe: Recipe, network: nn.Module, device: torch.device) -> torch.dtype:
    """The arithmetic of the forward pass; see `Recipe.precision`."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if recipe.precision != "auto":
        return named[recipe.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # Depthwise convolutions are slower in bf16 on CPUs (measured); dense ones gain twofold.
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    dense_on_cpu = device.type == "cpu" and not depthwise and cpu_has_bfloat16()
    return torch.bfloat16 if dense_on_cpu else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in `dtype`; nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def prepare(context: Context) -> torch.device:
    """Set threads and seed; return the device.

    float32 stays float32: on CUDA, TF32 would make the student's own answers, by which every file
    is judged, differ from themselves in the third digit.
    """
    torch.set_num_threads(context.threads or max(1, cores() // context.team.local_size))
    torch.manual_seed(context.seed)
    device = pick_device(context.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
    return device


def compiled(forward: nn.Module, wanted: bool) -> Callable[[Tensor], Tensor]:
    """`forward`, compiled where that is `wanted`.

    Raises `CannotRunHereError` where there is no compiler.
    """
    if wanted and not any(shutil.which(name) for name in ("cc", "gcc", "clang", "cl")):
        raise CannotRunHereError(
            "recipe.compile = true, and torch.compile finds no C compiler",
            remedy="Install one, or set compile to false.",
        )
    return torch.compile(forward) if wanted else forward


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now; outside Linux a process cannot forget its own peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access(CLEAR, os.W_OK):
        CLEAR.write_text("5")  # resets VmHWM: proc_pid_clear_refs(5)


def peak_memory(device: torch.device) -> int:
    """Most bytes held since `forget_peak`: of the GPU by torch, else resident by this process."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_rss()


def where(device: torch.device) -> str:
    """The device in words, with the card's name."""
    return f"cuda ({torch.cuda.get_device_name()})" if device.type == "cuda" else device.type
