"""The trained student's files, as the run's report has them, held against the budget."""

from pathlib import Path

from benchmarks import graph_cost
from benchmarks.published import workload
from pipeline.fit import phone
from pipeline.fit.budget import Budget
from pipeline.fit.outcome import EXPORTED, Final
from pipeline.fit.phone import Way
from pipeline.fit.shots import Shot
from pipeline.fit.space import Network
from pipeline.summary import ArtifactRow, Report


def judge(network: Network, report: Report, folder: Path, way: Way, budget: Budget) -> Final:
    """The trained student's files on that phone, under that budget.

    The ONNX files are counted; bytes and answers are of the runtime's own files where it has some.
    """
    rows = _plain(report, "onnx")
    own = _plain(report, way.runtime) if way.runtime in EXPORTED else {}
    shots, top1, files = [], {}, {}
    for precision in way.precisions:
        row = rows.get(precision)
        # An fp16 file computes what the fp32 file does, which is what is counted.
        counted = rows.get("int8" if precision == "int8" else "fp32")
        if row is None or counted is None or row.path is None or row.bytes is None:
            continue
        if row.top1 is None or row.top1_ci95 is None or row.n is None:
            continue
        work = workload.of(folder / (counted.path or ""))
        memory = graph_cost.cost(folder / row.path).memory_bytes
        found = phone.predicted(work, precision, way)
        size, right = row.bytes, (row.top1, row.top1_ci95, row.n)
        # Rows of float files on NPUs were run in half precision: such a file has 32 bits itself.
        its = own.get(precision) or (own.get("fp32") if precision == "fp16" else None)
        if its and its.bytes and its.top1 is not None and its.top1_ci95 and its.n:
            size, right = its.bytes, (its.top1, its.top1_ci95, its.n)
            files[precision] = its.title
        shots.append(Shot.of(precision, size, memory, found, budget))
        top1[precision] = right
    missing = None
    if not shots:
        missing = next(
            (row.skipped for row in report.artifacts if row.format == "onnx" and row.skipped),
            "the run made none that can be judged",
        )
    return Final(network=network, shots=tuple(shots), top1=top1, files=files, missing=missing)


def _plain(report: Report, kind: str) -> dict[str, ArtifactRow]:
    """The plain files of a format, by precision."""
    return {
        row.precision: row
        for row in report.artifacts
        if row.format == kind and row.variant is None and row.path and row.bytes
    }
