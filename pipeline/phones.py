"""What phones measured of a run's files: runs/<name>/phones/, one JSON file a phone.

`benchmarks phone` and `benchmarks adb` write them; the report shows those whose files it still has.
"""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import ConfigDict, ValidationError

from pipeline.records import Record
from pipeline.whole import write_whole

FOLDER = "phones"
EDGE = 3
"""Windows at either end of a curve that stand for it: one alone may have been disturbed."""


class PhoneFile(Record):
    """One file, run in one way. What was not measured is None."""

    model_config = ConfigDict(extra="ignore")  # as in all of report.json: fields may be added

    title: str
    """As the report names the file."""
    sha256: str
    """Of the bytes that it ran, as the phone computed it; of those offered where it failed."""
    how: str
    """Runtime, unit and threads, as "wasm, 4 threads"."""
    start_ms: float | None = None
    """Start of the runtime itself, its WebAssembly fetched before."""
    load_ms: float | None = None
    """From the bytes in memory to a session."""
    first_ms: float | None = None
    """The first inference of that session."""
    p50_ms: float | None = None
    p50_ci95: tuple[float, float] | None = None
    """By batch means (`benchmarks.steadiness`)."""
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    n: int = 0
    """Timed inferences."""
    peak_bytes: int | None = None
    """Most memory of the process."""
    overhead_ms: float | None = None
    """Median for an ONNX file that does next to nothing, measured the same way."""
    clock_ms: float | None = None
    """The smallest step of the clock."""
    curve_ms: tuple[float, ...] = ()
    """Medians of windows, without a pause between; a window has one inference at least."""
    curve_s: tuple[float, ...] = ()
    """Seconds at which each window ended, from the start of the first."""
    golden: tuple[int, int] | None = None
    """Golden images that were answered as expected, and how many there are."""
    golden_fault: str | None = None
    """The first that was not, and why."""
    top1: float | None = None
    top1_ci95: tuple[float, float] | None = None
    images: int = 0
    """Test images that were run there."""
    here_top1: float | None = None
    """On the report's host, over the same images."""
    doubts: tuple[str, ...] = ()
    """What may have disturbed the latencies."""
    skipped: str | None = None
    """Why it did not run."""

    @property
    def loses(self) -> bool:
        """Whether its top-1 there is certainly below that of this host over the same images.

        By the interval of the one alone: over the same images, few of which get another class, the
        difference is known better.
        """
        if self.top1_ci95 is None or self.here_top1 is None:
            return False
        return self.top1_ci95[1] < self.here_top1

    @property
    def as_here(self) -> bool:
        """Whether nothing shows that it answers otherwise there than on this host."""
        return not (self.golden_fault or self.loses)

    @property
    def curve_start(self) -> float | None:
        """Median of the first `EDGE` windows; None where the curve is shorter than two such."""
        found = median(self.curve_ms[:EDGE]) if len(self.curve_ms) >= 2 * EDGE else 0
        return found or None

    @property
    def rate_at_end(self) -> float | None:
        """Median of the last `EDGE` windows as a multiple of `curve_start`."""
        start = self.curve_start
        return median(self.curve_ms[-EDGE:]) / start if start else None


class Phone(Record):
    """One device and what it measured."""

    model_config = ConfigDict(extra="ignore")

    id: str
    device: str
    system: str = ""
    runtime: str = ""
    """Browser, or benchmark program."""
    via: Literal["browser", "adb"]
    date: str
    facts: tuple[str, ...] = ()
    """Cores, memory, GPU, temperature: what it told."""
    files: tuple[PhoneFile, ...] = ()
    left: str | None = None
    """How far it came, where it went away before the end."""


def read(run: Path, sha256s: Iterable[str | None]) -> tuple[Phone, ...]:
    """What phones measured of those files, by date; damaged and foreign JSON files are passed over.

    Figures of files that the run no longer has are left where they are, but not returned.
    """
    current = set(sha256s)
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            phone = Phone.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError):
            continue
        files = tuple(file for file in phone.files if file.sha256 in current)
        if files:
            found.append(phone.model_copy(update={"files": files}))
    return tuple(sorted(found, key=lambda phone: phone.date))


def write(run: Path, phone: Phone) -> Path:
    """Keep what `phone` measured; whole or not at all."""
    path = run / FOLDER / f"{phone.id}.json"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, phone.model_dump_json(indent=1) + "\n")
    return path
