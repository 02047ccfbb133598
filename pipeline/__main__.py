"""The command line: run, fit, export, show, report, compare, gate, prune, doctor, fetch."""

import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from pipeline.errors import CannotRunHereError, PipelineError, StoreError
from pipeline.fit.command import fit
from pipeline.progress import console, make_console, silence

RUNS = Path("runs")
EXIT_REFUSED = 1
"""Of `gate`, where a rule does not pass."""
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Says how to go on after an interruption: Typer itself would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.print("\nStopped. Run the same command again to go on where it was.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="From a labelled image set to measured classifier files for a phone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
fetching = typer.Typer(help="Fetch what is only fetched when asked for.", no_args_is_help=True)
app.add_typer(fetching, name="fetch")
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


_state = {"debug": False}


@app.callback()
def _options(debug: Debug = False) -> None:
    _state["debug"] = debug


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Settings, e.g. pipeline/configs/quick.toml.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    runs: Runs = RUNS,
    store: Annotated[
        Path | None, typer.Option(help="Where results are kept; runs/.store by default.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline; what is there already is not done again."""
    _state["debug"] |= debug
    from pipeline import config as settings
    from pipeline import flow, summary, tables, team
    from pipeline.store import Store

    read = settings.read(config, set_ or [])
    joined = team.join()
    if not joined.leads:
        silence()
    folder = flow.run(read, Store(store or runs / ".store", joined), runs, _command())
    if folder is None:  # this process had its share in the training alone
        return
    typer.echo()
    _print(tables.show(summary.read(folder)))
    typer.echo(f"Report: {folder / 'report.html'}    Files to ship: {folder / 'bundle'}")


app.command()(fit)


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A run, a store folder, a weights file (with --arch), or a network."),
    ],
    format_: Annotated[
        list[str] | None, typer.Option("--format", help="A format; may be repeated. Default: all.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Class folders of images to calibrate and verify with."),
    ] = None,
    verify: Annotated[int, typer.Option(min=1, help="Images to verify with.")] = 256,
    arch: Annotated[str | None, typer.Option(help="Network of a weights file.")] = None,
    width: Annotated[float, typer.Option(help="Its width multiplier.")] = 1.0,
    labels: Annotated[
        Path | None, typer.Option(help="Text file of class names, one a line, in order.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Image size in pixels.")] = 224,
    grey: Annotated[bool, typer.Option("--grey", help="Grey images, not RGB.")] = False,
    mean: Annotated[str | None, typer.Option(help="By channel, in 0..1: 0.5,0.5,0.5")] = None,
    std: Annotated[str | None, typer.Option(help="By channel, in 0..1.")] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Random weights, to try formats and speeds.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Of the folder below runs/.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of export, quantize or measure."),
    ] = None,
    runs: Runs = RUNS,
    store: Annotated[Path | None, typer.Option(help="Where results are kept.")] = None,
) -> None:
    """Export any checkpoint, or a network of torchvision or timm by its name, and verify it."""
    from pipeline import exporting, imported, tables
    from pipeline.store import Store

    origin = imported.Origin(
        arch=arch,
        labels=imported.read_labels(labels) if labels else None,
        size=size,
        channels=1 if grey else 3,
        mean=imported.numbers("--mean", mean),
        std=imported.numbers("--std", std),
        width=width,
        untrained=untrained,
    )
    request = exporting.Request(
        checkpoint=checkpoint,
        formats=tuple(format_ or ()),
        images=images,
        verify=verify,
        origin=origin,
        name=name,
        overrides=set_ or [],
        command=_command(),
    )
    folder, found = exporting.run(request, Store(store or runs / ".store"), runs)
    if found is not None:
        _print(tables.show(found))
    typer.echo(f"Files to ship: {folder / 'bundle'}")


@app.command()
def show(
    run: Annotated[
        str | None, typer.Argument(help="A run's name or folder; without it, all are listed.")
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Print a run's table, or the list of all runs."""
    from pipeline import summary, tables

    if run is not None:
        _print(tables.show(summary.read(_folder(run, runs))))
        return
    if not runs.is_dir():
        raise StoreError(f"there are no runs: {runs} is no folder", "Name it with --runs.")
    _print(tables.runs(runs))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run's name or folder.")], runs: Runs = RUNS
) -> None:
    """Make a run's pages anew from its report.json."""
    from pipeline import summary
    from pipeline.stages import report as pages

    folder = _folder(run, runs)
    pages.write(summary.read(folder), folder)
    typer.echo(f"Report: {folder / 'report.html'}, {folder / 'report.md'}")


@app.command()
def compare(
    run: Annotated[list[str], typer.Argument(help="Two or more runs, names or folders.")],
    across_hosts: Annotated[
        bool,
        typer.Option(help="Compare times and memory even if hosts, profiles or runtimes differ."),
    ] = False,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    json: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Print the differences in accuracy, latency, memory, size and settings between runs."""
    from pipeline import summary, tables
    from pipeline.comparison import build, pages

    reports = [summary.read(_folder(name, runs)) for name in run]
    found = build.compare(reports, across_hosts=across_hosts)
    _print(tables.compare(found))
    pages.write(found, markdown, json, html)


@app.command()
def gate(
    run: Annotated[str, typer.Argument(help="A run's name or folder.")],
    against: Annotated[str, typer.Option(help="The run it is to replace.")],
    rules: Annotated[Path, typer.Option(help="TOML file of rules.")],
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Say whether a run may replace another by your rules: exit code 0, or 1."""
    from pipeline import gate as gates
    from pipeline import judgements, summary

    asked = gates.read(rules)
    folder, before_folder = _folder(run, runs), _folder(against, runs)
    report, before = summary.read(folder), summary.read(before_folder)
    found = gates.judge(report, folder, before, before_folder, asked)
    for each in found:
        typer.echo(each.line)
    if junit is not None:
        junit.write_bytes(judgements.junit(found, report.run))
    judgements.summarize(judgements.markdown(found, report.run, before.run))
    if not all(each.passes for each in found):
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def prune(
    runs: Runs = RUNS,
    store: Annotated[
        Path | None, typer.Option(help="Where results are kept; runs/.store by default.")
    ] = None,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="Give up runs that were stopped before their report.")
    ] = False,
    older: Annotated[
        bool,
        typer.Option(
            "--older", help="Give up results of earlier versions that no run in the folder needs."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Remove results that no run needs, after showing what and how much."""
    from pipeline import pruning

    plan = pruning.survey(store or runs / ".store", runs, stopped=stopped, older=older)
    _print(pruning.shown(plan))
    if not plan.goes:
        return
    if not yes and not sys.stdin.isatty():
        typer.echo("Nothing was removed: --yes removes it.")
    elif yes or typer.confirm("Remove it?"):
        typer.echo(pruning.remove(plan))


@app.command()
def doctor() -> None:
    """Say for every format, runtime and device whether it works here, and if not, why."""
    from pipeline.doctor import examine

    _print(examine())


@fetching.command("emulators")
def fetch_emulators() -> None:
    """Fetch the emulated CPUs on which files are tried, out of Debian's packages (140 MB)."""
    from pipeline.fetching import fetch

    typer.echo(f"Emulators: {fetch()}")


def _folder(run: str, runs: Path) -> Path:
    """A run by its name below `runs`, or by its path."""
    return runs / run if (runs / run).exists() or not Path(run).exists() else Path(run)


def _print(what: object) -> None:
    make_console(stderr=False).print(what)


def _command() -> str:
    return shlex.join(["python", "-m", "pipeline", *sys.argv[1:]])


def explained(error: Exception) -> PipelineError | None:
    """`error` as a message for the user; None where it is a fault of this program."""
    if isinstance(error, PipelineError):
        return error
    # By name: torch may not be loaded, and loading it takes seconds.
    if "OutOfMemoryError" in (kind.__name__ for kind in type(error).__mro__):
        reason = next(iter(str(error).splitlines()), "")
        return CannotRunHereError(
            f"out of memory: {reason}",
            "Lower batch_size, for example: --set teach.recipe.batch_size=64 or "
            "--set student.recipe.batch_size=64",
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return PipelineError(
            f"{error.strerror or error}{where}", "With --debug you see where it happened."
        )
    return None


def tell(error: PipelineError) -> None:
    """Print `error`, in a process that was silenced too."""
    out = make_console(stderr=True)
    out.print(f"[bold red]Error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.remedy:
        out.print(escape(error.remedy), highlight=False, soft_wrap=True)


def main() -> None:
    """Turn errors into a message and an exit code: 2 for bad input, 130 for an interruption."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="python -m pipeline")
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        if _state["debug"]:
            traceback.print_exc()
        tell(told)
        raise SystemExit(EXIT_BAD_INPUT) from None


if __name__ == "__main__":
    main()
