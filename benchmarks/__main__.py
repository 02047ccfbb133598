"""The command line of the experiments: training, distillation, quantization.

Each prints its tables and writes them, with what is needed to repeat them, as a Markdown page; the
raw numbers lie beside it as JSON. Torch is loaded inside the commands only.
"""

import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table
from typer.core import TyperGroup

from pipeline.__main__ import EXIT_BAD_INPUT, EXIT_INTERRUPTED, tell
from pipeline.errors import ConfigError, PipelineError
from pipeline.machine import cpu_name, cuda_devices, cuda_name, versions
from pipeline.progress import console, make_console
from pipeline.settings import read_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")


class _Commands(TyperGroup):
    """Says that an interruption was one: Typer itself would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.print("\nStopped.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="Experiments: how fast training is, what distillation gains, what int8 loses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Out = Annotated[Path, typer.Option(help="The Markdown page; raw numbers lie beside it as .json.")]


@app.command()
def training(
    source: Annotated[
        str, typer.Option(help="A public image set of the pipeline, or folder.")
    ] = "cifar10",
    folder: Annotated[
        Path | None, typer.Option(help="Where your images are: <class>/* in train/ and test/.")
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Random images of CIFAR-10's shape: no download.")
    ] = False,
    images: Annotated[int, typer.Option(help="Images an epoch; 0: 5,120, on a GPU 46,080.")] = 0,
    epochs: Annotated[int, typer.Option(help="Timed epochs a process, after an untimed one.")] = 2,
    repeats: Annotated[int, typer.Option(help="Fresh processes for each loop, in turn.")] = 2,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    teacher: Annotated[str, typer.Option(help="Architecture.")] = "resnet20_cifar",
    teacher_width: Annotated[float, typer.Option(help="Width multiplier.")] = 4.0,
    student: Annotated[str, typer.Option(help="Architecture.")] = "mobilenet_v2",
    student_width: Annotated[float, typer.Option(help="Width multiplier.")] = 0.5,
    stem_stride: Annotated[int, typer.Option(help="Stride of its first convolution.")] = 1,
    views: Annotated[int, typer.Option(help="Views that the teacher's answers are kept of.")] = 2,
    threads: Annotated[int, typer.Option(help="CPU threads of both loops; 0: all cores.")] = 0,
    workers: Annotated[
        int, typer.Option(help="Loading processes of the usual loop; -1: the fastest in a trial.")
    ] = -1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    out: Out = RESULTS / "training.md",
) -> None:
    """Time the usual PyTorch training loop against this one, in one run on one machine."""
    wanted = {key: value for key, value in locals().items() if key != "out"}
    from benchmarks import pages
    from benchmarks import training as bench

    options = read_table(wanted, bench.Options, ())
    _check_place(out)
    origin = _provenance()
    found = bench.run(options)
    facts, tables = pages.speed_facts(found), pages.speed_tables(found)
    _publish("Speed of training", origin, facts, tables, found, out)


@app.command()
def distillation(
    tournament: Annotated[Path, typer.Argument(help="Who takes part, as TOML.")] = Path(
        "benchmarks/tournament.toml"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key for all entrants."),
    ] = None,
    store: Annotated[
        Path, typer.Option(help="Where trained networks are kept; the pipeline's own.")
    ] = Path("runs/.store"),
    out: Out = RESULTS / "distillation.md",
) -> None:
    """Train the student by each method and alone, under one budget; what is there is not redone."""
    from benchmarks import distillation as bench
    from benchmarks import pages
    from pipeline.store import Store

    entries = bench.read(tournament, set_ or [])
    _check_place(out)
    origin = _provenance()
    found = bench.run(entries, Store(store))
    facts, tables = pages.gain_facts(found), pages.gain_tables(found)
    _publish("Distillation methods", origin, facts, tables, found, out)


@app.command()
def quantization(
    plan: Annotated[Path, typer.Argument(help="Students and image sets, as TOML.")] = Path(
        "benchmarks/quantization.toml"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key for all students."),
    ] = None,
    folder: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES=FOLDER", help="Where the images of that name lie, if here."),
    ] = None,
    store: Annotated[
        Path, typer.Option(help="Where trained networks are kept; the pipeline's own.")
    ] = Path("runs/.store"),
    out: Out = RESULTS / "quantization.md",
) -> None:
    """Quantize students here and by ONNX Runtime's own quantizer; what is there is not redone."""
    from benchmarks import pages
    from benchmarks import quantization as bench
    from pipeline.store import Store

    pairs = [each.partition("=") for each in folder or []]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"--folder {wrong[0]}: not of the form IMAGES=FOLDER")
    entries = bench.read(plan, set_ or [], {name: Path(place) for name, _, place in pairs})
    _check_place(out)
    origin = _provenance()
    found = bench.run(entries, Store(store))
    facts, tables = pages.int8_facts(found), pages.int8_tables(found)
    _publish("int8 against float and stock quantization", origin, facts, tables, found, out)


def _check_place(out: Path) -> None:
    """Refuse before hours of work what cannot be written after them."""
    if out.suffix != ".md":
        raise ConfigError(f"--out {out}: not a Markdown file", "Let its name end in .md.")
    out.parent.mkdir(parents=True, exist_ok=True)
    there = out.exists()
    with out.open("a", encoding="utf-8"):
        pass
    if not there:
        out.unlink()


def _publish(
    title: str,
    origin: dict[str, str],
    facts: Sequence[str],
    tables: Sequence[Table],
    raw: BaseModel,
    out: Path,
) -> None:
    """Print the tables; write the page and the raw numbers.

    `origin` is `_provenance` as it was before the work; a commit that is another now is told too.
    """
    ended = _commit()
    if ended != origin["commit"]:
        commit = f"{origin['commit']} (the tree changed during the run; at its end {ended})"
        origin = origin | {"commit": commit}
    screen = make_console(stderr=False)
    for table in tables:
        screen.print(table)
    bullets = [f"- {name}: {value}" for name, value in origin.items()]
    parts = ["\n".join(bullets), "\n".join(f"- {fact}" for fact in facts), *map(_markdown, tables)]
    out.write_text(f"# {title}\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    numbers = raw.model_copy(update={"provenance": origin})
    out.with_suffix(".json").write_text(numbers.model_dump_json(indent=1) + "\n", encoding="utf-8")
    typer.echo(f"Written: {out}, {out.with_suffix('.json')}")


def _provenance() -> dict[str, str]:
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


def main() -> None:
    """Turn errors into a message and an exit code: 2 for bad input, 130 for an interruption."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="python -m benchmarks")
    except (PipelineError, OSError) as error:
        tell(error if isinstance(error, PipelineError) else PipelineError(str(error)))
        raise SystemExit(EXIT_BAD_INPUT) from None


if __name__ == "__main__":
    main()
