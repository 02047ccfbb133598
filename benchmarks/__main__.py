"""The command line of the experiments: latencies, training, distillation, quantization.

Each prints its tables and writes them, with what is needed to repeat them, as a Markdown page; the
raw numbers lie beside it as JSON. Torch is loaded inside the commands only.
"""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks import profiles
from benchmarks.profiles import Profile
from benchmarks.publishing import RESULTS, check_place, provenance, publish
from pipeline.__main__ import EXIT_BAD_INPUT, EXIT_INTERRUPTED, tell
from pipeline.errors import ConfigError, PipelineError
from pipeline.progress import console
from pipeline.settings import read_table


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
    help="Experiments: how fast files and trainings are, what distillation gains and int8 loses.",
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
    found = bench.run(entries, Store(store))
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
    found = bench.run(entries, Store(store))
    facts, tables = pages.int8_facts(found), pages.int8_tables(found)
    publish("int8 against float and stock quantization", origin, facts, tables, found, out)


Targets = Annotated[
    list[str], typer.Argument(help="Runs by name or folder, or files (.onnx, .ort, .tflite, .pte).")
]
ProfileName = Annotated[str, typer.Option("--profile", help="A table of benchmarks/profiles.toml.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Where runs are kept.")]


@app.command()
def latency(
    targets: Targets,
    profile: ProfileName = "phone-1t",
    with_loadgen: Annotated[
        bool, typer.Option("--loadgen", help="Time with MLPerf LoadGen, too.")
    ] = False,
    runs: RunsFolder = Path("runs"),
    out: Out = RESULTS / "latency.md",
) -> None:
    """Time files on this machine, each in a fresh process."""
    from benchmarks import loadgen, measuring
    from benchmarks import targets as files

    options = _profile(profile)
    if with_loadgen:
        loadgen.check(options)
    found = files.find(targets, runs)
    check_place(out)
    origin = provenance()
    timed = measuring.measure(found, profile, options, with_loadgen=with_loadgen)
    facts, tables = measuring.latency_facts(timed), measuring.latency_tables(timed)
    publish("Latency", origin, facts, tables, timed, out)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A file.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    rounds: Annotated[int, typer.Option(min=5, help="Processes of each, in turn.")] = 15,
    profile: ProfileName = "phone-1t",
    out: Out = RESULTS / "compare.md",
) -> None:
    """Time two files in turn, and say how many times as long the second takes."""
    from benchmarks import measuring, turns
    from benchmarks import targets as files

    options = _profile(profile)
    first, second = (files.find([word], Path()).targets[0] for word in (a, b))
    check_place(out)
    origin = provenance()
    found = measuring.Pair(
        profile_name=profile,
        profile=options,
        comparison=turns.compare(first, second, options, rounds),
    )
    facts, tables = measuring.pair_facts(found), measuring.pair_tables(found)
    publish("Two files in turn", origin, facts, tables, found, out)


@app.command()
def sustained(
    targets: Targets,
    minutes: Annotated[float, typer.Option(min=0.02, help="For each file.")] = 3.0,
    profile: ProfileName = "phone-1t",
    runs: RunsFolder = Path("runs"),
    out: Out = RESULTS / "sustained.md",
) -> None:
    """Run files for minutes without a pause, and say which is fastest then."""
    from benchmarks import measuring, turns
    from benchmarks import targets as files

    options = _profile(profile)
    found = files.find(targets, runs)
    check_place(out)
    origin = provenance()
    curves = [turns.sustain(each, options, minutes) for each in found.targets]
    told = measuring.Curves(
        profile_name=profile,
        profile=options,
        minutes=minutes,
        curves=tuple(curves),
        skipped=found.skipped,
    )
    publish(
        "Latency over minutes",
        *(origin, measuring.curve_facts(told), measuring.curve_tables(told), told, out),
    )


@app.command("operators")
def operators_(
    file: Annotated[str, typer.Argument(help="An .onnx file.")],
    profile: ProfileName = "phone-1t",
    out: Out = RESULTS / "operators.md",
) -> None:
    """Say where the time of an ONNX file goes: by operator type and by layer."""
    from benchmarks import layers, measuring, operators
    from benchmarks import targets as files

    options = _profile(profile)
    (target,) = files.find([file], Path()).targets
    if target.path.suffix != ".onnx":
        raise ConfigError(f"{file} is no .onnx file: only ONNX Runtime tells where time goes")
    check_place(out)
    origin = provenance()
    spent = operators.measure(target.path, target.images, options)
    names = layers.names_of(target.path)
    found = measuring.Profiled(title=target.title, profile_name=profile, spent=spent, layers=names)
    facts = [f"{target.title}, profile {profile}", *measuring.SPENT_FACTS]
    publish("Where the time goes", origin, facts, measuring.spent_tables(spent, names), found, out)


@app.command()
def cost(
    targets: Targets,
    runs: RunsFolder = Path("runs"),
    out: Out = RESULTS / "cost.md",
) -> None:
    """Count what ONNX files cost wherever they run: multiply-adds, parameters, memory."""
    from benchmarks import graph_cost, measuring
    from benchmarks import targets as files

    found = [each for each in files.find(targets, runs).targets if each.path.suffix == ".onnx"]
    if not found:
        raise ConfigError("there is no .onnx file among these, and nothing else can be counted")
    check_place(out)
    origin = provenance()
    told = measuring.Costs(costs={each.title: graph_cost.cost(each.path) for each in found})
    tables = measuring.cost_tables(told.costs)
    publish("Cost of graphs", origin, measuring.COST_FACTS, tables, told, out)


def _profile(name: str) -> Profile:
    """The profile, if this machine has what it wants."""
    found = profiles.read(name)
    found.check(name)
    return found


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
