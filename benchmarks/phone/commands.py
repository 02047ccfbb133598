"""The command line of phones: what measures there is loaded inside the commands only."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import CannotRunHereError

app = typer.Typer()
RunsFolder = Annotated[Path, typer.Option("--runs", help="Where runs are kept.")]


@app.command()
def phone(
    run: Annotated[str, typer.Argument(help="A run by name or folder.")],
    phones: Annotated[int, typer.Option(min=1, max=8, help="Phones to wait for.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.2, max=60, help="For the latency of a file, each way.")
    ] = 5.0,
    sustain: Annotated[
        float, typer.Option(min=0, max=1800, help="Seconds that the curve of a file covers.")
    ] = 10.0,
    wait: Annotated[float, typer.Option(min=0.01, help="Minutes until a phone must come.")] = 15.0,
    host: Annotated[
        str | None, typer.Option(help="This machine's address that the phone can reach.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    store: Annotated[Path, typer.Option(help="The pipeline's store, for test images.")] = Path(
        "runs/.store"
    ),
    runs: RunsFolder = Path("runs"),
) -> None:
    """Let a phone measure a run's ONNX files in its browser; its figures go into the report."""
    from benchmarks import targets
    from benchmarks.phone import terminal

    folder = targets.run_folder(run, runs)
    kept = terminal.in_browser(
        folder,
        store=store,
        host=host,
        port=port,
        count=phones,
        seconds=seconds,
        sustain=sustain,
        wait_minutes=wait,
    )
    if not kept:
        raise CannotRunHereError(
            "no phone measured anything", "Run it again, and open its address on the phone."
        )
    typer.echo(f"Figures of {kept} phone{'s' * (kept > 1)}: {folder / 'report.html'}")


@app.command()
def adb(
    run: Annotated[str, typer.Argument(help="A run by name or folder.")],
    binary: Annotated[
        Path,
        typer.Option(help="For the phone: onnxruntime_perf_test, or LiteRT's benchmark_model."),
    ],
    serial: Annotated[
        str | None, typer.Option(help="Of the phone, where there are several.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Inferences of each file.")] = 200,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Measure a run's files on an Android phone at a cable; its figures go into the report."""
    from benchmarks import targets
    from benchmarks.phone import terminal

    folder = targets.run_folder(run, runs)
    found = targets.find([run], runs)
    told = terminal.on_cable(folder, found, binary, serial=serial, threads=threads, runs=repeats)
    typer.echo(f"Figures of {told.device}: {folder / 'report.html'}")
