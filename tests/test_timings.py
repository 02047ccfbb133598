"""What the report says of how latencies were taken."""

import pytest

from pipeline import timings, verdict
from tests.small_run import usual_run


@pytest.fixture
def of(tmp_path):
    """A report whose latencies are as given."""

    def build(**facts):
        report = usual_run(tmp_path).report()
        rows = tuple(
            row.model_copy(update={"latency": row.latency.model_copy(update=facts)})
            if row.latency
            else row
            for row in report.artifacts
        )
        return report.model_copy(update={"artifacts": rows})

    return build


def test_a_quiet_host_is_no_warning(of):
    (line,) = timings.hosts(of())
    assert line.startswith("Latency: one image at a time, profile phone-1t, 1 thread, on ")
    assert list(timings.warnings(of())) == []


def test_a_noisy_host_is_a_warning(of):
    report = of(noisy="p50 is known to ±7.0% only")
    told = list(timings.warnings(report))
    assert told[0] == "The host was too noisy to time onnx fp32: p50 is known to ±7.0% only."
    assert set(told) <= set(verdict.warnings(report))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"batch": 8}, "Latency: 8 images at a time, profile"),
        ({"processes": 20}, "Latency: from the file to the first answer, each time in a fresh"),
    ],
)
def test_what_a_sample_is(of, facts, words):
    assert any(line.startswith(words) for line in timings.hosts(of(**facts)))


def test_what_measuring_takes_is_told_where_latencies_are_small(of):
    assert timings.hosts(of(overhead_ms=0.0123))[-1] == (
        "Of a latency 0.012 ms are the measuring itself: so long an empty file takes in ONNX "
        "Runtime, called from Python."
    )
