"""What a person sees in the terminal while phones measure, and the report's part in it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from rich.markup import escape

from benchmarks.phone import adb, job, server
from benchmarks.phone.visits import Visits
from benchmarks.targets import Found
from pipeline import phones, summary
from pipeline.errors import StoreError
from pipeline.phones import Phone, PhoneFile
from pipeline.progress import console
from pipeline.stages import report
from pipeline.store import digest, writing

LOCK_S = 30
"""For which another process may write the run's pages."""


def keep(run: Path, phone: Phone) -> None:
    """Put what `phone` measured into the report of the run in folder `run`.

    Raises `StoreError` where that cannot be written.
    """
    with _locked(run):
        path = phones.write(run, phone)
        try:
            report.write(summary.read(run).with_phones(run), run)
        except BaseException:
            # A page that cannot be made with it could not be made again by any later run.
            path.rename(path.with_suffix(".unreported"))
            raise


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    with writing(run):
        try:
            with FileLock(run / ".lock", timeout=LOCK_S):
                yield
        except Timeout as error:
            raise StoreError(
                f"another process has held {run / '.lock'} for {LOCK_S} s",
                "Wait for the run that writes there, and measure again.",
            ) from error


def in_browser(
    run: Path,
    *,
    store: Path,
    host: str | None,
    port: int,
    count: int,
    seconds: float,
    sustain: float,
    wait_minutes: float,
) -> int:
    """Serve the page until the phones are through; how many have figures in the report.

    Raises `StoreError` where figures could not be put there, and what `server.check`,
    `server.listen` and `job.prepare` do.
    """
    server.check()
    prepared = job.prepare(run, store, seconds, sustain)
    listening = server.listen(host or server.address(), port)
    visits = Visits(prepared, _say, lambda phone: keep(run, phone))
    if prepared.no_sample:
        _say(f"No accuracy over test images: {prepared.no_sample}.")
    server.serve(
        prepared,
        visits,
        listening,
        lambda url, fingerprint: _open(url, fingerprint, prepared),
        phones=count,
        wait_s=60 * wait_minutes,
        nobody=lambda: _nobody(listening.getsockname()[0]),
    )
    if visits.failures:
        raise StoreError("; ".join(visits.failures), "Mend that, and measure again.")
    return visits.kept


def on_cable(
    run: Path, found: Found, binary: Path, *, serial: str | None, threads: int, runs: int
) -> Phone:
    """Measure the files of `found`, a run's, on the phone that adb sees; into the run's report.

    Raises what `adb.choose`, `adb.fitting` and `adb.measure` do.
    """
    device = adb.choose(serial)
    fit, left_out = adb.fitting(found.targets, binary, device)
    for reason in (*found.skipped, *left_out):
        _say(f"not measured: {reason}")
    timings = adb.measure(fit, binary, device, threads, runs)
    phone = _phone(device, timings)
    keep(run, phone)
    return phone


def _phone(device: adb.Device, timings: Sequence[adb.Timing]) -> Phone:
    first, last = timings[0], timings[-1]
    facts = [f"program: {first.binary}", f"arguments: {first.arguments}"]
    facts += [f"chip: {device.soc}"] if device.soc else []
    facts += ["an emulator, no phone"] if device.emulated else []
    if device.cpu_mhz:
        facts.append(f"cores: {len(device.cpu_mhz)}, up to {max(device.cpu_mhz):,} MHz")
    temperatures = first.battery_c[0], last.battery_c[1]
    if None not in temperatures:
        facts.append("battery: {} to {} °C".format(*temperatures))
    unique = digest([device.serial, first.binary, first.threads])
    return Phone(
        id=f"adb-{unique}",
        device=device.model,
        system=f"Android {device.android}",
        runtime=first.runtime,
        via="adb",
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=tuple(facts),
        files=tuple(_file(timing) for timing in timings),
    )


def _file(timing: adb.Timing) -> PhoneFile:
    same = PhoneFile.model_fields.keys() & adb.Timing.model_fields.keys()
    threads = f"{timing.threads} thread{'s' * (timing.threads != 1)}"
    return PhoneFile(
        **{name: getattr(timing, name) for name in same}, how=f"{timing.runtime}, {threads}"
    )


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _open(url: str, fingerprint: str, prepared: job.Job) -> None:
    import segno

    ways = 3
    each = max(prepared.steady_s, prepared.sustain_s) + 3
    minutes = math.ceil(len(prepared.files) * ways * each / 60)
    segno.make(url, error="l").terminal(out=None, compact=True)
    _say(f"Open this on the phone, which must be in the same network:\n\n  {url}\n")
    _say(
        "The certificate was made for this once, so the browser warns: choose to go on. Its "
        f"SHA-256 is\n  {fingerprint}\n"
        f"{len(prepared.files)} files in up to {ways} ways take {minutes} min or more. Ctrl-C ends "
        "it; what was measured by then is kept."
    )


def _nobody(host: str) -> None:
    _say(
        f"Nobody has opened the page yet. The phone must reach {host}: mobile data, a guest "
        "network or a firewall keeps it away. Another address of this machine: --host."
    )
