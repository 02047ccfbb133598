"""The command `fit`: its options, and its exit code."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.fit import budget

EXIT_NOTHING = 1
"""Where no student keeps the budget and reaches the accuracy."""


def fit(
    config: Annotated[Path, typer.Argument(help="Settings, e.g. pipeline/configs/quick.toml.")],
    phone: Annotated[str, typer.Option(help='A device with published latencies: "Pixel 4".')],
    latency: Annotated[str | None, typer.Option(help="Of one image: 5ms.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the file: 3MB.")] = None,
    memory: Annotated[str | None, typer.Option(help="Weights and activations: 20MB.")] = None,
    accuracy: Annotated[str | None, typer.Option(help="Top-1 to reach: 0.9 or 90%.")] = None,
    sure: Annotated[
        bool, typer.Option("--sure", help="Hold the upper end of the 80 % interval to --latency.")
    ] = False,
    runtime: Annotated[
        str | None, typer.Option(help="Runtime on the phone; by default the best predicted one.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads there.")] = None,
    resolution: Annotated[
        list[int] | None,
        typer.Option(min=8, help="Pixels to try; may be repeated. Small images: their own."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Networks to look at, untrained.")] = 64,
    candidates: Annotated[int, typer.Option(min=1, help="Networks to train a little.")] = 6,
    minutes: Annotated[
        float | None,
        typer.Option(help="Time for everything: leaves out what takes too long to train here."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    store: Annotated[
        Path | None, typer.Option(help="Where results are kept; runs/.store by default.")
    ] = None,
) -> None:
    """Find, train and export the student that a budget on a phone allows."""
    if minutes is not None and not minutes > 0:
        raise typer.BadParameter("must be more than 0", param_hint="--minutes")
    wanted = budget.parse(latency, size, memory, accuracy, sure=sure)
    from pipeline.fit import fitting, pages
    from pipeline.progress import make_console
    from pipeline.store import Store

    request = fitting.Request(
        config=config,
        overrides=set_ or [],
        phone=phone,
        runtime=runtime,
        threads=threads,
        budget=wanted,
        sizes=tuple(resolution or ()),
        trials=trials,
        few=candidates,
        minutes=minutes,
        command=shlex.join(["python", "-m", "pipeline", *sys.argv[1:]]),
    )
    found = fitting.run(request, Store(store or runs / ".store"), runs)
    typer.echo()
    make_console(stderr=False).print(pages.table(found))
    typer.echo(f"All of it: {runs / found.run / pages.PAGES[0]}")
    if not found.meets:
        raise typer.Exit(EXIT_NOTHING)
