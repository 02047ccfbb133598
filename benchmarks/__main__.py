"""The command line of what is measured: latencies and costs here, on phones, and predicted.

Each prints its tables and writes them, with what is needed to repeat them, as a Markdown page; the
raw numbers lie beside it. More commands: those of phones are in `phone.commands`, those of the
project's own experiments in `experiments.commands`.
"""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks import profiles
from benchmarks.experiments import commands as experiments
from benchmarks.phone import commands as phone
from benchmarks.profiles import Profile
from benchmarks.publishing import RESULTS, check_place, provenance, publish
from pipeline.__main__ import EXIT_BAD_INPUT, EXIT_INTERRUPTED, tell
from pipeline.errors import ConfigError, PipelineError, VerificationError
from pipeline.progress import console

if TYPE_CHECKING:
    from benchmarks.targets import Target


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
    help="How fast files are, here and on phones; and the project's own experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Out = Annotated[Path, typer.Option(help="The Markdown page; raw numbers lie beside it.")]


app.add_typer(experiments.app)
app.add_typer(phone.app)
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
    publish("Latency", origin, facts, tables, timed, out, timed.samples_ns)


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
    first, second = files.named_files((a, b))
    check_place(out)
    origin = provenance()
    found = measuring.Pair(
        profile_name=profile,
        profile=options,
        comparison=turns.compare(first, second, options, rounds),
    )
    facts, tables = measuring.pair_facts(found), measuring.pair_tables(found)
    publish("Two files in turn", origin, facts, tables, found, out, found.comparison.samples_ns)


@app.command()
def sustained(
    targets: Targets,
    minutes: Annotated[float, typer.Option(min=0.02, help="For each file.")] = 3.0,
    profile: ProfileName = "phone-1t",
    runs: RunsFolder = Path("runs"),
    out: Out = RESULTS / "sustained.md",
) -> None:
    """Run files for minutes without a pause, and say which is fastest then."""
    from benchmarks import curves, turns
    from benchmarks import targets as files

    options = _profile(profile)
    found = files.find(targets, runs)
    check_place(out)
    origin = provenance()
    told = curves.Curves(
        profile_name=profile,
        profile=options,
        minutes=minutes,
        curves=tuple(turns.sustain(each, options, minutes) for each in found.targets),
        skipped=found.skipped,
    )
    facts, tables = curves.curve_facts(told), curves.curve_tables(told)
    publish("Latency over minutes", origin, facts, tables, told, out, told.samples_ns)


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
    (target,) = files.named_files([file])
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
    instructions: Annotated[
        bool, typer.Option("--instructions", help="Count instructions, too, under valgrind.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(help="Fail where a cost rose since this .json was written.")
    ] = None,
    runs: RunsFolder = Path("runs"),
    out: Out = RESULTS / "cost.md",
) -> None:
    """Count what ONNX files cost wherever they run: multiply-adds, parameters, memory."""
    from benchmarks import costs

    found = _graphs(targets, runs)
    before = costs.read(against) if against else None
    check_place(out)
    origin = provenance()
    told = costs.count({each.title: each.path for each in found}, retired=instructions)
    rose = costs.risen(told, before) if before else []
    if rose and against and against.resolve() == out.with_suffix(".json").resolve():
        # Written over, it would find nothing the next time.
        raise VerificationError(f"more than in {against}, which stays: " + "; ".join(rose))
    publish("Cost of graphs", origin, costs.facts(told), costs.tables(told), told, out)
    if rose:
        raise VerificationError(f"more than in {against}: " + "; ".join(rose))


@app.command()
def predict(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Runs by name or folder, or .onnx files.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Say how far such predictions are off.")
    ] = False,
    runs: RunsFolder = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="The Markdown page; raw numbers lie beside it.")
    ] = None,
) -> None:
    """Estimate the latency of ONNX files on named phones, from the graph alone."""
    from benchmarks import estimates
    from benchmarks import predict as fitted

    if evaluate == bool(targets):
        raise ConfigError("name files or runs to predict, or --evaluate, one of the two")
    out = out or RESULTS / ("predict-evaluate.md" if evaluate else "predict.md")
    if evaluate:
        check_place(out)
        origin = provenance()
        scores = estimates.Evaluated(evaluation=fitted.evaluate())
        facts, tables = estimates.evaluation_facts(scores), estimates.evaluation_tables(scores)
        publish("How far predictions are off", origin, facts, tables, scores, out)
        return
    found = _graphs(targets or [], runs)
    check_place(out)
    origin = provenance()
    told = estimates.estimate([(each.title, each.path) for each in found])
    facts, tables = estimates.facts(told), estimates.tables(told)
    publish("Predicted for phones", origin, facts, tables, told, out)


def _graphs(words: list[str], runs: Path) -> "list[Target]":
    """The .onnx files among what `words` name, as `targets.find` does."""
    from benchmarks.targets import find

    found = [each for each in find(words, runs).targets if each.path.suffix == ".onnx"]
    if not found:
        raise ConfigError("there is no .onnx file among these, and nothing else can be counted")
    return found


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
