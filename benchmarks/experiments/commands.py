"""The command line of the experiments. Torch is loaded inside the commands only."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.publishing import RESULTS, check_place, provenance, publish
from pipeline.errors import ConfigError
from pipeline.settings import read_table

app = typer.Typer()
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
    from benchmarks.experiments import pages
    from benchmarks.experiments import training as bench

    options = read_table(wanted, bench.Options, ())
    check_place(out)
    origin = provenance()
    found = bench.run(options)
    facts, tables = pages.speed_facts(found), pages.speed_tables(found)
    publish("Speed of training", origin, facts, tables, found, out)


@app.command()
def distillation(
    tournament: Annotated[Path, typer.Argument(help="Who takes part, as TOML.")] = Path(
        "benchmarks/experiments/tournament.toml"
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
    from benchmarks.experiments import distillation as bench
    from benchmarks.experiments import pages
    from pipeline.store import Store

    entries = bench.read(tournament, set_ or [])
    check_place(out)
    origin = provenance()
    kept = Store(store)
    with kept.referred_by(out):
        found = bench.run(entries, kept)
        facts, tables = pages.gain_facts(found), pages.gain_tables(found)
        publish("Distillation methods", origin, facts, tables, found, out)


@app.command()
def quantization(
    plan: Annotated[Path, typer.Argument(help="Students and image sets, as TOML.")] = Path(
        "benchmarks/experiments/quantization.toml"
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
    from benchmarks.experiments import pages
    from benchmarks.experiments import quantization as bench
    from pipeline.store import Store

    pairs = [each.partition("=") for each in folder or []]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"--folder {wrong[0]}: not of the form IMAGES=FOLDER")
    entries = bench.read(plan, set_ or [], {name: Path(place) for name, _, place in pairs})
    check_place(out)
    origin = provenance()
    kept = Store(store)
    with kept.referred_by(out):
        found = bench.run(entries, kept)
        facts, tables = pages.int8_facts(found), pages.int8_tables(found)
        publish("int8 against float and stock quantization", origin, facts, tables, found, out)
