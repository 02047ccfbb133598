"""What speaks against shipping a file to a target, whatever its accuracy and speed on this host."""

from collections.abc import Iterator

from pipeline import elsewhere, on_device
from pipeline.comparing import parity_fault
from pipeline.records import CpuCheck, Platform
from pipeline.summary import ArtifactRow, Report
from pipeline.wording import percent

ARM = ("android", "ios")
"""Platforms whose CPUs are arm64; a browser runs on any."""


def fault(report: Report, platform: Platform, row: ArtifactRow) -> str:
    """Why it must not be shipped there; empty where nothing is known against it."""
    told = (
        parity_fault(report, row),
        *_on_other_cpus(report, platform, row),
        *_on_phones(report, platform, row),
    )
    return next(filter(None, told), "")


def _on_other_cpus(report: Report, platform: Platform, row: ArtifactRow) -> Iterator[str]:
    for check in _checks(report, row):
        cpu = check.cpu.lower()
        arm = "arm64" in cpu or "aarch64" in cpu
        if not check.agrees and (platform == "web" or (platform in ARM and arm)):
            yield (
                f"answers otherwise on {elsewhere.cpu_name(check)} than here: it names "
                f"{percent(check.differs)} % of {check.n:,} test images otherwise, and "
                f"{percent(check.top1)} % of them rightly, against {percent(check.host_top1)} % "
                "here"
            )


def _checks(report: Report, row: ArtifactRow) -> tuple[CpuCheck, ...]:
    """Its own; of an ORT file those of the ONNX file it is made from: the same kernels."""
    if row.format != "ort" or row.cpus:
        return row.cpus
    kind = ("onnx", row.precision, row.variant)
    return tuple(
        check
        for each in report.artifacts
        if (each.format, each.precision, each.variant) == kind
        for check in each.cpus
    )


def _on_phones(report: Report, platform: Platform, row: ArtifactRow) -> Iterator[str]:
    """A phone on which no way to run it answers as this host does."""
    for phone in on_device.phones_of(report, platform):
        ways = [file for file in phone.files if file.sha256 == row.sha256 and not file.skipped]
        if not ways or any(file.as_here for file in ways):
            continue
        losing = next((file for file in ways if file.loses), None)
        yield (
            on_device.accuracy_there(phone, losing)
            if losing
            else f"does not answer the golden images on {on_device.phone_title(phone)} as here"
        )


def caveats(report: Report, platform: Platform, row: ArtifactRow) -> list[str]:
    """What its figures do not show of the platform, a clause each."""
    found, by = list[str](), row.evaluated_with or ""
    if by.startswith("coreml reference"):
        found.append("checked by this project’s reference executor, not on Apple’s hardware")
    elif platform == "nvidia" and not by.startswith("tensorrt"):
        found.append(
            "checked as a graph on this CPU: the engine is built on the GPU, and not tried here"
        )
    for phone in on_device.phones_of(report, platform):
        ways = [file for file in phone.files if file.sha256 == row.sha256]
        if ways and all(file.skipped for file in ways):
            why = "; ".join(dict.fromkeys((file.skipped or "").rstrip(".") for file in ways))
            found.append(f"{on_device.phone_title(phone)} could not run it: {why}")
    return found
