"""What is said of the experiments: facts and tables, for the screen and for the page."""

import statistics
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from benchmarks import distillation, training
from benchmarks.stats import mean_interval

GOALS = {"cpu": 4.0, "cuda": 10.0, "epoch": 1.15}
"""Least ratio to the usual loop, by device; most time of a kept-views epoch in baseline epochs."""
COLUMNS = ("val %", "test % (95 %)", "gain, points (95 %)", "p")
NONE = ("", "")


def speed_facts(found: training.Found) -> list[str]:
    """What has to be said beside the tables."""
    options, setup = found.options, found.setup
    precision = {x.kind: x.precision for x in found.timings if x.side == "ours"}
    trial = ", ".join(f"{n} workers {speed:,.0f} images/s" for n, speed in found.trial.items())
    memory = "of the GPU" if options.on_cuda else "resident, of the training process alone"
    return [
        f"images: {setup.data}; {setup.images:,} an epoch, {options.batch} a step",
        *(f"{role}: {words}" for role, words in setup.networks.items()),
        f"device: {setup.device}, {setup.threads} CPU threads for both loops",
        f"each loop: {options.repeats} fresh processes in turn with the other's, each one epoch to "
        f"warm up and then {options.epochs} that count; median (least to most)",
        "usual: PIL images, torchvision transforms (crop, flip, ToTensor, Normalize), DataLoader "
        f"with {found.workers} workers ({trial or 'as asked for'}), float32 NCHW (on CUDA with "
        "PyTorch's default, TF32 convolutions), SGD with Nesterov momentum, the teacher run "
        "without gradient on every batch",
        f"ours: the pipeline's own stages; the teacher's arithmetic {precision['teacher']}, the "
        f"student's {precision['baseline']}",
        f"kept views: the teacher answered to {options.views} views beforehand, "
        f"{found.view_seconds:.1f} s each, which is "
        f"{found.view_seconds * found.speed('ours', 'baseline') / setup.images:.2f} baseline "
        "epochs and not part of the speeds below",
        f"memory: peak, {memory}",
    ]


def speed_tables(found: training.Found) -> list[Table]:
    """Speeds, the goals, and memory by epoch."""
    speeds = _table(
        1,
        "Speed",
        *("step", "usual images/s", "ours images/s", "ratio", "usual peak MB", "ours peak MB"),
    )
    for kind, title in training.TITLES.items():
        ratio = found.speed("ours", kind) / found.speed("usual", kind)
        both = [_spread(found.speeds(side, kind)) for side in ("usual", "ours")]
        peaks = [f"{found.peak(side, kind) / 1e6:,.0f}" for side in ("usual", "ours")]
        speeds.add_row(title, *both, f"{ratio:.2f}", *peaks)
    return [speeds, _goals(found), _memory(found)]


def _goals(found: training.Found) -> Table:
    table = _table(1, "Goals", "what", "found", "goal")
    least = GOALS["cuda" if found.options.on_cuda else "cpu"]
    for kind in ("live", "kept"):
        ratio = found.speed("ours", kind) / found.speed("usual", kind)
        title = f"{training.TITLES[kind]} / usual distillation, images/s"
        table.add_row(title, f"{ratio:.2f}", f"at least {least:g}")
    ratio = found.speed("ours", "baseline") / found.speed("ours", "kept")
    title = "kept-views distillation epoch / baseline epoch, time"
    table.add_row(title, f"{ratio:.2f}", f"at most {GOALS['epoch']:g}")
    return table


def _memory(found: training.Found) -> Table:
    """Peak memory of ours after each epoch: it must not grow from epoch to epoch."""
    count = 1 + found.options.epochs
    names = [f"epoch {n}" for n in range(1, count + 1)]
    table = _table(1, "Peak memory of ours after each epoch, MB", "step", *names)
    for each in found.timings:
        if each.side == "ours":
            peaks = [f"{(peak or 0) / 1e6:,.0f}" for peak in each.epoch_peak_bytes]
            table.add_row(training.TITLES[each.kind], *peaks)
    return table


def _spread(speeds: Sequence[float]) -> str:
    middle = statistics.median(speeds)
    return f"{_speed(middle)} ({_speed(min(speeds))}–{_speed(max(speeds))})"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def gain_facts(found: distillation.Found) -> list[str]:
    """What has to be said beside the tables."""
    return [
        f"images: {found.data}",
        f"teacher: {found.teacher}",
        f"student: {found.student}",
        f"budget of each: {found.budget}; the last epoch counts",
        f"best on the validation split: {found.best or 'none'}",
        "gain: over the baseline with the same recipe, on the same test images, with its paired "
        "95 % interval; p is McNemar's and not corrected for the number of rows",
        "seconds: of all epochs with validation; what the teacher's answers to kept views took is "
        "not in it, for entrants share them; what was in the store has the figures of its own "
        "training",
    ]


def gain_tables(found: distillation.Found) -> list[Table]:
    """All entrants, and the best over its seeds."""
    entrants = _table(2, "Entrants, one seed", "entrant", "settings", *COLUMNS, "s", "images/s")
    for row in found.rows:
        speed = (f"{row.seconds:.1f}", f"{row.images_per_second:,.0f}")
        words = f"{row.words}: {row.failed}" if row.failed else row.words
        entrants.add_row(row.name, words, *_cells(row), *(NONE if row.failed else speed))
    if not found.seeds:
        return [entrants]
    seeds = _table(2, f"{found.best} and its baseline by seed", "network", "seed", *COLUMNS)
    for row in found.seeds:
        seeds.add_row(row.name, str(row.seed), *_cells(row))
    for name in dict.fromkeys(row.name for row in found.seeds):
        done = [row for row in found.seeds if row.name == name and not row.failed]
        gains = [row.gain for row in done if row.gain is not None]
        tops = _mean([row.top1 for row in done], _percent)
        seeds.add_row(f"{name}, mean (t)", f"n={len(done)}", "", tops, _mean(gains, _points), "")
    return [entrants, seeds]


def _cells(row: distillation.Row) -> tuple[str, str, str, str]:
    if row.failed is not None:
        return "", "failed", "", ""
    low, high = row.top1_ci95
    top1 = f"{_percent(row.top1)} ({_percent(low)}–{_percent(high)})"
    if row.gain is None or row.mcnemar_p is None:
        return _percent(row.val_top1), top1, "", ""
    gain = f"{_points(row.gain)} ({_points(row.gain_ci95[0])} to {_points(row.gain_ci95[1])})"
    return _percent(row.val_top1), top1, gain, f"{row.mcnemar_p:.2g}"


def _mean(values: Sequence[float], words: Callable[[float], str]) -> str:
    """The mean with its interval over seeds; "" where there are too few."""
    if len(values) < 2:
        return ""
    mean, (low, high) = mean_interval(values)
    return f"{words(mean)} ({words(low)} to {words(high)})"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _table(words: int, title: str, *columns: str) -> Table:
    """A table whose first `words` columns are words and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for place, column in enumerate(columns):
        left = place < words
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    return table
