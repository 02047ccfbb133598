"""The same int8 file on other CPUs: this one, one without VNNI, and a phone's.

An x86 CPU without VNNI adds products of uint8 and int8 in pairs, in 16 bits, which can overflow:
the same file then answers differently (Intel's oneDNN documentation, "Nuances of int8
computations"). Whether it does is found by running the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import runtime
from pipeline.errors import PipelineError
from pipeline.quantized import REMEDIES
from pipeline.records import CpuCheck, Scheme
from runtime import onnx_runtime

if TYPE_CHECKING:
    import onnx

    from pipeline.quantization.judge import Judge

OTHERS = ("haswell", "arm64")
"""Modules of runtime/ that stand for other CPUs."""
AT_ONCE = 5000
"""Images for one emulated process, which are written out for it."""


def choose(
    placed: Callable[[Scheme], onnx.ModelProto],
    first: Scheme,
    judge: Judge,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> tuple[Scheme, tuple[CpuCheck, ...]]:
    """The scheme whose graph is the same on every CPU, and all checks that were made.

    `placed` gives the graph of a scheme. Where that of `first` differs, the `REMEDIES` are tried,
    the fastest here first; one on a CPU of which it is not known proves nothing. Where none helps,
    `first` stays.
    """
    checks = _check(placed(first), first, images, labels, judge.threads)
    if same(checks):
        return first, checks
    others: list[Scheme] = [scheme for scheme in REMEDIES if scheme != first]
    graphs = {scheme: placed(scheme) for scheme in others}
    times = dict(zip(graphs, judge.interleaved_ms(list(graphs.values())), strict=True))
    asked = _answered(checks)
    for scheme in sorted(others, key=times.__getitem__):
        found = _check(graphs[scheme], scheme, images, labels, judge.threads)
        checks += found
        if same(found) and _answered(found) == asked:
            return scheme, checks
    return first, checks


def _answered(checks: Sequence[CpuCheck]) -> set[str]:
    return {check.cpu for check in checks if check.top1 is not None}


def _check(
    graph: onnx.ModelProto,
    scheme: Scheme,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    threads: int,
) -> tuple[CpuCheck, ...]:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        onnx.save(graph, path)
        here = onnx_runtime.open(path, threads).run(images)
        return compare(path, images, labels, here, threads, scheme)


def there() -> dict[str, str | None]:
    """Which emulator stands for each other CPU; None where there is none."""
    found = {name: runtime.load(name).availability() for name in OTHERS}
    return {name: each.detail if each.ok else None for name, each in found.items()}


def compare(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    here: NDArray[np.float32],
    threads: int,
    scheme: Scheme | None = None,
) -> tuple[CpuCheck, ...]:
    """The ONNX file at `path` on each other CPU; `here` are this host's logits [n, classes]."""
    named, found = here.argmax(1), []
    starts = range(0, len(images), AT_ONCE)
    for name in OTHERS:
        module = runtime.load(name)
        available = module.availability()
        why = f"{available.detail}. {available.remedy}".strip()
        if available.ok:
            try:
                session = module.open(path, threads)
                parts = [session.run(images[i : i + AT_ONCE]) for i in starts]
                other = np.concatenate(parts).argmax(1)
            except PipelineError as error:
                why = f"{error.message}. {error.remedy}".strip()
            except OSError as error:
                why = f"the images could not be handed over: {error}"
            else:
                found.append(
                    CpuCheck(
                        cpu=session.name,
                        scheme=scheme,
                        n=len(labels),
                        top1=float((other == labels).mean()),
                        host_top1=float((named == labels).mean()),
                        differs=float((other != named).mean()),
                    )
                )
                continue
        found.append(CpuCheck(cpu=name, scheme=scheme, skipped=why))
    return tuple(found)


def same(checks: Sequence[CpuCheck]) -> bool:
    """Whether every CPU that was run answers as this host does."""
    return all(check.agrees for check in checks)
