"""What the report says of how latencies were taken."""

from collections.abc import Iterator

from pipeline.summary import LatencyRow, Report
from pipeline.wording import condition, number


def hosts(report: Report) -> list[str]:
    """Where and how the latencies were measured, one line a condition; and what an empty file
    took, where there are latencies that small."""
    taken = [row.latency for row in report.rows if row.latency]
    found = dict.fromkeys(
        f"Latency: {_sample(each)}, profile {condition(each)}, on {each.host}." for each in taken
    )
    empty = [each.overhead_ms for each in taken if each.overhead_ms is not None]
    if empty:
        found[
            f"Of a latency {number(max(empty))} ms are the measuring itself: so long an empty file "
            "takes in ONNX Runtime, called from Python."
        ] = None
    return list(found)


def _sample(latency: LatencyRow) -> str:
    """What one sample is, in words."""
    if latency.processes > 1:
        return "from the file to the first answer, each time in a fresh process"
    return "one image at a time" if latency.batch == 1 else f"{latency.batch} images at a time"


def warnings(report: Report) -> Iterator[str]:
    """Latencies that the host was too noisy to take."""
    for row in report.rows:
        if row.latency and row.latency.noisy:
            yield f"The host was too noisy to time {row.title}: {row.latency.noisy}."
