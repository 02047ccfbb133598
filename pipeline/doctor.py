"""What works on this machine and, if something does not, why and how to get it."""

from collections.abc import Callable, Iterator

from rich import box
from rich.table import Table
from rich.text import Text

import exporters
import runtime
from pipeline.machine import cpu_has_bfloat16, cpu_name, package_version
from runtime import Availability

OPTIONAL = {
    "timm": ("timm", "MobileNetV4 students and timm teachers"),
    "scikit-learn": ("digits", "the image set `digits`"),
}
"""Distribution -> (extra, what it is for)."""


def examine() -> Table:
    """A table of devices, formats, runtimes and optional packages."""
    table = Table(box=box.SIMPLE_HEAD, title="What works here", title_justify="left")
    for heading in ("", "", "works", "detail", "how to get it"):
        table.add_column(heading, overflow="fold")
    for kind, name, found in _findings():
        works = Text("yes", "green") if found.ok else Text("no", "yellow")
        table.add_row(kind, name, works, found.detail, found.remedy)
    return table


def _findings() -> Iterator[tuple[str, str, Availability]]:
    for name, check in DEVICES.items():
        yield "device", name, check()
    for name in exporters.names():
        yield "format", name, exporters.load(name).availability()
    for name in runtime.names():
        yield "runtime", name, runtime.load(name).availability()
    for name, (extra, purpose) in OPTIONAL.items():
        yield "package", name, _package(name, extra, purpose)


def _cpu() -> Availability:
    return Availability(True, cpu_name() + (", bfloat16" if cpu_has_bfloat16() else ""))


def _cuda() -> Availability:
    import torch

    from pipeline.machine import cuda_devices

    if torch.cuda.is_available():
        return Availability(True, torch.cuda.get_device_name())
    if cuda_devices():
        return Availability(
            False,
            f"the driver finds a GPU, torch {torch.__version__} does not",
            "Install a torch build whose CUDA version the driver supports.",
        )
    return Availability(False, "no NVIDIA driver or GPU on this machine")


def _mps() -> Availability:
    import torch

    if torch.backends.mps.is_available():
        return Availability(True, "Apple GPU")
    return Availability(False, "needs macOS on an Apple GPU")


DEVICES: dict[str, Callable[[], Availability]] = {"cpu": _cpu, "cuda": _cuda, "mps": _mps}


def _package(name: str, extra: str, purpose: str) -> Availability:
    found = package_version(name)
    if found:
        return Availability(True, f"{found}, for {purpose}")
    remedy = f'.venv/bin/pip install -e ".[{extra}]"'
    return Availability(False, f"not installed; it brings {purpose}", remedy)
