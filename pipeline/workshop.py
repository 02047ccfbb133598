"""Where files are exported: foreign converters run in a process of their own.

A converter that crashes takes its process with it. Here that is one format's `ExportError`, with
the end of what it wrote, and not the end of the run.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self

import exporters
from exporters import Exported, FormatSettings, Sources, Variant
from pipeline.errors import ExportError, PipelineError

TAIL = 5
"""Lines of a crashed converter's log that the message repeats."""
LOG = "converter.log"


class Workshop:
    """Exports files, each format that asks for it in one process of its own.

    A context manager: processes end with it.
    """

    def __init__(self, threads: int = 0) -> None:
        """`threads` is how many a converter may use; 0 leaves that to it."""
        self._threads = threads
        self._name = ""
        self._pool: ProcessPoolExecutor | None = None
        self._child = 0
        self._scratch = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._child:  # what it is at is of no use any more
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)
        self._close()
        self._scratch.cleanup()

    def export(
        self, name: str, sources: Sources, variant: Variant, settings: FormatSettings, folder: Path
    ) -> Exported:
        """What the exporter `name` makes in `folder`.

        Raises what it raises, and `ExportError` where its process ends by a crash.
        """
        if not exporters.load(name).ISOLATED:
            return exporters.load(name).export(sources, variant, settings, folder)
        if name != self._name or self._pool is None:
            self._open(name)
        assert self._pool is not None
        there = folder.resolve()
        try:
            job = self._pool.submit(_export, name, sources, variant, settings, there)
            return job.result()
        except BrokenProcessPool as error:
            raise self._crashed(name) from error

    def _open(self, name: str) -> None:
        self._close()
        self._name = name
        self._log.write_bytes(b"")
        # Spawned: a forked child would share the locks of torch's threads.
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(str(self._log), self._threads),
        )
        self._child = self._pool.submit(os.getpid).result()

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._child = 0

    @property
    def _log(self) -> Path:
        return Path(self._scratch.name, LOG)

    def _crashed(self, name: str) -> ExportError:
        self._close()
        text = self._log.read_text(encoding="utf-8", errors="replace")
        said = " | ".join(_last_words(text)) or "it wrote nothing"
        return ExportError(
            f"the converter of {name} crashed; the end of its log: {said}",
            remedy=f'The other formats go on. Leave "{name}" out of export.formats to do without.',
        )


def _last_words(log: str) -> list[str]:
    """The end of what a converter wrote, up to Python's note of its death; no stack."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    deaths = [place for place, line in enumerate(lines) if line.startswith("Fatal Python error")]
    return lines[: deaths[0] + 1 if deaths else None][-TAIL:]


def _begin(log: str, threads: int) -> None:
    """In the new process: all output into the log, of foreign code too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()

    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    faulthandler.enable()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _end_with_parent() -> None:
    """A parent that is killed closes nothing behind it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _export(
    name: str, sources: Sources, variant: Variant, settings: FormatSettings, folder: Path
) -> Exported:
    try:
        return exporters.load(name).export(sources, variant, settings, folder)
    except (PipelineError, OSError, MemoryError):
        raise
    except Exception as error:  # foreign code raises whatever it likes
        traceback.print_exc()
        reason = next(iter(str(error).splitlines()), "")
        raise ExportError(
            f"the converter of {name} failed: {type(error).__name__}: {reason}",
            remedy=f'The other formats go on. Leave "{name}" out of export.formats to do without.',
        ) from None
