"""What experiments do with their results: a page that tells how to repeat them, and numbers."""

import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import typer
from numpy.typing import ArrayLike
from pydantic import BaseModel
from rich.table import Table

from pipeline.errors import ConfigError
from pipeline.machine import cpu_name, cuda_devices, cuda_name, versions
from pipeline.progress import make_console

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")


def check_place(out: Path) -> None:
    """Refuse before hours of work what cannot be written after them."""
    if out.suffix != ".md":
        raise ConfigError(f"--out {out}: not a Markdown file", "Let its name end in .md.")
    out.parent.mkdir(parents=True, exist_ok=True)
    there = out.exists()
    with out.open("a", encoding="utf-8"):
        pass
    if not there:
        out.unlink()


def publish(
    title: str,
    origin: dict[str, str],
    facts: Sequence[str],
    tables: Sequence[Table],
    raw: BaseModel,
    out: Path,
    arrays: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Print the tables; write the page and the raw numbers, the `arrays` by name as .npz.

    `origin` is `provenance` as it was before the work; a commit that is another now is told too.
    """
    ended = _commit()
    if ended != origin["commit"]:
        commit = f"{origin['commit']} (the tree changed during the run; at its end {ended})"
        origin = origin | {"commit": commit}
    screen = make_console(stderr=False)
    for table in tables:
        screen.print(table)
    for fact in facts:
        screen.print(f"- {fact}", markup=False, highlight=False)
    bullets = [f"- {name}: {value}" for name, value in origin.items()]
    parts = ["\n".join(bullets), "\n".join(f"- {fact}" for fact in facts), *map(_markdown, tables)]
    out.write_text(f"# {title}\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    numbers = raw.model_copy(update={"provenance": origin})
    out.with_suffix(".json").write_text(numbers.model_dump_json(indent=1) + "\n", encoding="utf-8")
    written = [out, out.with_suffix(".json")]
    if arrays:
        written.append(out.with_suffix(".npz"))
        np.savez_compressed(written[-1], allow_pickle=False, **arrays)
    typer.echo(f"Written: {', '.join(map(str, written))}")


def provenance() -> dict[str, str]:
    """What it takes to repeat a result, by name; the date is when it began."""
    found = versions("torch", "torchvision", "numpy", "onnxruntime")
    packages = [f"{name} {version or 'missing'}" for name, version in found.items()]
    cards = f"; {cuda_devices()} × {cuda_name()}" if cuda_devices() else "; no CUDA GPU"
    return {
        "command": f"`{shlex.join(['python', '-m', 'benchmarks', *sys.argv[1:]])}`",
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "host": cpu_name() + cards,
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
    }


def _commit() -> str:
    """The commit, and whether the tree differs from it; results written here do not count."""
    if shutil.which("git") is None:
        return "unknown (no git)"

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", f":!{RESULTS.as_posix()}")
    commit = git("rev-parse", "--short=10", "HEAD") or "unknown (no checkout)"
    return commit + (" + uncommitted changes" if changed else "")


def _markdown(table: Table) -> str:
    """A rich table as Markdown."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    columns = table.columns
    rules = ["--:" if column.justify == "right" else "---" for column in columns]
    rows = zip(*(column.cells for column in columns), strict=True)
    lines = [line([column.header for column in columns]), line(rules), *map(line, rows)]
    return f"**{table.title}**\n\n" + "\n".join(lines)
