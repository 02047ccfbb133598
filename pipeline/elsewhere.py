"""Whether the shipped int8 file answers on other CPUs as on this one, in words and table rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.quantized import REMEDIES
from pipeline.records import APART, CpuCheck, Scheme
from pipeline.summary import Report
from pipeline.wording import Finding, enumerated, percent

ALIKE = 0.01
"""Share of images that may get another class where two CPUs "answer alike"."""


class CpuRow(NamedTuple):
    """A check of one file on another CPU, to be read."""

    cpu: str
    detail: str
    """Version and emulator."""
    scheme: str
    n: str
    top1: str
    host_top1: str
    apart: str
    differs: str


def cpu_rows(report: Report) -> list[CpuRow]:
    """The shipped int8 file on the CPUs it was run on, over test images."""
    return _rows(_shipped(report)[1])


def scheme_rows(report: Report) -> list[CpuRow]:
    """The schemes that were tried on other CPUs, over validation images; [] for less than two."""
    checks = report.quantization.checks if report.quantization else ()
    return _rows(checks) if len({check.scheme for check in checks}) > 1 else []


def _rows(checks: Sequence[CpuCheck]) -> list[CpuRow]:
    return [
        CpuRow(
            *(cpu_name(check), check.cpu, check.scheme or "", f"{check.n:,}"),
            *(percent(check.top1), percent(check.host_top1)),
            f"{check.apart:.2f}",
            percent(check.differs),
        )
        for check in checks
        if check.apart is not None
    ]


def _shipped(report: Report) -> tuple[str, tuple[CpuCheck, ...]]:
    """Title and checks of the file that was tried on other CPUs."""
    row = next((row for row in report.artifacts if row.cpus), None)
    return (row.title, row.cpus) if row else ("", ())


def cpu_name(check: CpuCheck) -> str:
    """The CPU of a check in words."""
    low = check.cpu.lower()
    known = {"haswell": "x86 without VNNI", "arm64": "arm64"}
    name = next((told for part, told in known.items() if part in low), check.cpu)
    return f"emulated {name}" if "qemu" in low and name != check.cpu else name


def not_run(report: Report) -> list[str]:
    """Where the shipped int8 file was not tried, and why: one sentence a reason."""
    title, checks = _shipped(report)
    reasons: dict[str, list[str]] = {}
    for check in checks:
        if check.apart is None:
            reasons.setdefault(check.skipped or "no answer", []).append(cpu_name(check))
    return [
        f"{title} was not tried on {enumerated(cpus)}: {reason.rstrip('.')}."
        for reason, cpus in reasons.items()
    ]


def same_everywhere(report: Report) -> Finding:
    """Whether the shipped int8 file answers elsewhere as here; nothing where it was not tried."""
    title, checks = _shipped(report)
    # On an arm64 machine that CPU is this one: there is nothing to claim.
    run = [check for check in checks if check.apart is not None and "native" not in check.cpu]
    if not run:
        return Finding("", "")
    if far := [check for check in run if not check.agrees]:
        told = (
            f"On {cpu_name(check)} top-1 is {percent(check.top1)} % against "
            f"{percent(check.host_top1)} % on this host over the same {check.n:,} test images; "
            f"{percent(check.differs)} % of them get another class."
            for check in far
        )
        return Finding(f"{title} does not answer alike on every CPU.", " ".join(told))
    where, n = enumerated([cpu_name(check) for check in run]), min(check.n for check in run)
    differs = max(check.differs or 0.0 for check in run)
    if not differs:
        told = f"Each of {n:,} test images gets the same class as on this host."
        return Finding(f"{title} answers the same on {where}.", told)
    most = "At most " if len(run) > 1 else ""
    claim = "answers alike" if differs <= ALIKE else "is as accurate"
    return Finding(
        f"{title} {claim} on {where}.",
        f"{most}{percent(differs)} % of {n:,} test images get another class than on this host; "
        f"top-1 is within {max(check.apart or 0.0 for check in run):.2f} points.",
    )


def warnings(report: Report) -> Iterator[str]:
    """Where the file differs, why, and the remedy."""
    title, checks = _shipped(report)
    yield from (_apart(report, title, check, "test") for check in checks if not check.agrees)
    row = report.quantization
    if row and not any(check.apart is not None for check in checks):
        kept = [check for check in row.checks if check.scheme == row.scheme and not check.agrees]
        yield from (_apart(report, "The int8 graph", check, "validation") for check in kept)


def _apart(report: Report, title: str, check: CpuCheck, split: str) -> str:
    scheme = report.quantization.scheme if report.quantization else "u8s8"
    less = "less" if (check.top1 or 0) < (check.host_top1 or 0) else "more"
    overflows = scheme == "u8s8" and "VNNI" in cpu_name(check)
    why = (
        "x86 CPUs without VNNI add products of uint8 and int8 in 16 bits, which can overflow"
        if overflows
        else "its kernels round differently"
    )
    n, where, remedy = f"{check.n:,} {split} images", cpu_name(check), _remedy(report, scheme)
    if (check.apart or 0.0) <= APART:  # what it loses with some it gains with others
        share = percent(check.differs)
        return (
            f"{title} gives {share} % of {n} another class on {where} than on this host: {why}. "
            f"{remedy}"
        )
    return (
        f"{title} is {check.apart:.2f} points {less} accurate on {where} than on this host, over "
        f"{n}: {why}. {remedy}"
    )


def _remedy(report: Report, scheme: Scheme) -> str:
    """Another scheme: one that was found to be the same on every CPU, if there is one."""
    checks = report.quantization.checks if report.quantization else ()
    tried = dict.fromkeys(check.scheme for check in checks if check.apart is not None)
    far = {check.scheme for check in checks if not check.agrees}
    good = [name for name in tried if name and name not in far and name != scheme]
    if good:
        return f'Set quantize.scheme = "{good[0]}", which was the same on validation images.'
    left = [f'"{name}"' for name in REMEDIES if name not in (scheme, *far)]
    if not left:
        return "No other scheme was the same on validation images: ship another file for that CPU."
    return f"Try quantize.scheme = {enumerated(left, 'or')}."
