"""What is said of the experiments: facts and tables, for the screen and for the page."""

import statistics
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from benchmarks.experiments import distillation, int8_latency, quantization, training
from benchmarks.stats import Interval, mean_interval
from pipeline.quantized import Fused
from pipeline.wording import NONE, interval, percent, points, points_interval

GOALS = {"cpu": 4.0, "cuda": 10.0, "epoch": 1.15}
"""Least ratio to the usual loop, by device; most time of a kept-views epoch in baseline epochs."""
COLUMNS = ("val %", "test % (95 %)", "gain, points (95 %)", "p")
LONG = 200
"""Epochs of a training at full length: those of pipeline/configs/cifar10.toml."""


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
        "epochs; no speed below includes that, but for the goals' rows that say so",
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
    """The ratios that there are goals for, and what is left of one when kept views are paid for.

    The teacher answers to N views in N·v seconds, v for each. The student then trains for E epochs
    of n images at k images/s, in E·n/k seconds; the usual loop, whose speed u has the teacher in
    it, takes E·n/u. The ratio of both whole times is (E·n/u) / (E·n/k + N·v), which is
    1 / (u · (1/k + N·v / (E·n))). It is worst where no view is used twice, E = N, and nears k/u
    with E.
    """
    table = _table(1, "Goals", "what", "found", "goal")
    least = GOALS["cuda" if found.options.on_cuda else "cpu"]
    for kind in ("live", "kept"):
        ratio = found.speed("ours", kind) / found.speed("usual", kind)
        title = f"{training.TITLES[kind]} / usual distillation, images/s"
        table.add_row(title, f"{ratio:.2f}", f"at least {least:g}")
    views, images = found.options.views, found.setup.images
    usual, kept = found.speed("usual", "kept"), found.speed("ours", "kept")
    for epochs in dict.fromkeys((views, max(views, LONG))):
        passes = views * found.view_seconds / (epochs * images)
        title = (
            f"{training.TITLES['kept']}, with the teacher's passes over {views} views spread over "
            f"{epochs} epochs / usual distillation, images/s"
        )
        table.add_row(title, f"{1 / (usual * (1 / kept + passes)):.2f}", NONE)
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
    best = found.best or "none"
    if found.seeds:
        best += (
            f"; it was chosen by the accuracy of the first seed ({found.seeds[0].seed}) alone, and "
            "that seed's gain is among those of the mean over seeds"
        )
    return [
        f"images: {found.data}",
        f"teacher: {found.teacher}",
        f"student: {found.student}",
        f"budget of each: {found.budget}, but for what an entrant's settings name; the last epoch "
        "counts",
        "views: with kept views the student sees the same views again and again, the baseline a "
        "new one in every epoch (only with as many views as epochs is none repeated)",
        f"best on the validation split: {best}",
        "gain: over the baseline with the same recipe, on the same test images, with its paired "
        "95 % interval; p is McNemar's and not corrected for the number of rows",
        "time: not told, for a run may be paused or go on from what is in the store; speed has a "
        "benchmark of its own, `python -m benchmarks training`",
    ]


def gain_tables(found: distillation.Found) -> list[Table]:
    """All entrants, and the best over its seeds."""
    entrants = _table(2, "Entrants, one seed", "entrant", "settings", *COLUMNS)
    for row in found.rows:
        words = f"{row.words}: {row.failed}" if row.failed else row.words
        entrants.add_row(row.name, words, *_cells(row))
    if not found.seeds:
        return [entrants]
    seeds = _table(2, f"{found.best} and its baseline by seed", "network", "seed", *COLUMNS)
    for row in found.seeds:
        seeds.add_row(row.name, str(row.seed), *_cells(row))
    failed = len({row.seed for row in found.seeds if row.failed is not None})
    for name in dict.fromkeys(row.name for row in found.seeds):
        title = f"{name}, mean (t)"
        if failed:  # a mean over those that did not fail would be one over the lucky
            seeds.add_row(title, f"{failed} failed", "", "", "", "")
            continue
        mine = [row for row in found.seeds if row.name == name]
        gains = [row.gain for row in mine if row.gain is not None]
        tops = _mean([row.top1 for row in mine], percent, interval)
        gain = _mean(gains, points, points_interval)
        seeds.add_row(title, f"n={len(gains or mine)}", "", tops, gain, "")
    return [entrants, seeds]


def _cells(row: distillation.Row) -> tuple[str, str, str, str]:
    if row.failed is not None:
        return "", "failed", "", ""
    top1 = f"{percent(row.top1)} ({interval(row.top1_ci95)})"
    if row.gain is None or row.mcnemar_p is None:
        return percent(row.val_top1), top1, "", ""
    gain = f"{points(row.gain)} ({points_interval(row.gain_ci95)})"
    return percent(row.val_top1), top1, gain, f"{row.mcnemar_p:.2g}"


def _mean(
    values: Sequence[float], word: Callable[[float], str], both: Callable[[Interval], str]
) -> str:
    """The mean with its interval over seeds; "" where there are too few."""
    if len(values) < 2:
        return ""
    mean, ci95 = mean_interval(values)
    return f"{word(mean)} ({both(ci95)})"


def _table(words: int, title: str, *columns: str) -> Table:
    """A table whose first `words` columns are words and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for place, column in enumerate(columns):
        left = place < words
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    return table


LOSS = {"mobilenet_v2": 0.2, "mobilenet_v4_conv_small": 0.2}
"""Goal: points that int8 may lose; 0.3 for the others."""
SMALLEST = 0.30
"""Goal: size of the int8 file as a share of the float file's."""


def int8_facts(found: quantization.Found) -> list[str]:
    """What has to be said beside the tables."""
    return [
        "stock: `onnxruntime.quantization.quantize_static` after its `quant_pre_process`: Q/DQ, "
        "uint8 activations by minimum and maximum over 512 training images (accuracy) or noise "
        "(latency), per-channel int8 weights",
        "int8: accuracy of what this project's quantize stage ships by default; latency of the "
        f"types that it mostly chose, {found.timings[0].scheme}",
        "accuracy: ONNX Runtime on this host, the whole test split; loss is float minus int8, with "
        "its paired 95 % interval",
        "simulation: share of the test images on which the torch network that was fine-tuned names "
        "the same class as ONNX Runtime",
        f"latency: {int8_latency.SIZE} px, {int8_latency.CLASSES} classes, random weights, one "
        f"thread, one image, a fresh process for each network; {int8_latency.ROUNDS} rounds in "
        f"which each file is timed {int8_latency.PER_ROUND} times by itself, medians; ratio: "
        "median over the rounds (least to most)",
        "islands: groups of operators that stay float between integer ones, in the graph that ONNX "
        "Runtime runs here",
        *_cpu_facts(found),
    ]


def _cpu_facts(found: quantization.Found) -> list[str]:
    skipped = {check.skipped for row in found.rows for check in row.cpus if check.skipped}
    return [f"other CPUs, not run: {reason}" for reason in sorted(skipped)]


def int8_tables(found: quantization.Found) -> list[Table]:
    """Accuracy, latency, other CPUs, and the goals."""
    accuracy = _table(
        3,
        "Accuracy, top-1 %",
        *("images", "student", "kept", "float", "stock", "int8", "loss, points (95 %)"),
        *("stock loss", "agreement %", "simulation %", "size", "islands", "stock islands"),
    )
    for row in found.rows:
        accuracy.add_row(
            *(
                row.images,
                row.student,
                f"{row.how}, {row.scheme}",
                percent(row.float_top1),
                percent(row.stock_top1),
            ),
            percent(row.int8_top1),
            f"{points(row.loss)} ({points_interval(row.loss_ci95)})",
            points(row.float_top1 - row.stock_top1),
            *(percent(row.agreement), percent(row.simulation)),
            f"{row.bytes / row.float_bytes:.3f}",
            *(_islands(row.fused), _islands(row.stock_fused)),
        )
    latency = _table(
        1,
        f"Latency at {int8_latency.SIZE} px, one thread, ms",
        *("network", "float", "stock", "int8", "float / int8", "float / stock", "size"),
        *("islands", "stock islands"),
    )
    for each in found.timings:
        low, high = each.ratio_range
        latency.add_row(
            *(each.network, f"{each.float_ms:.2f}", f"{each.stock_ms:.2f}", f"{each.int8_ms:.2f}"),
            f"{each.ratio:.2f} ({low:.2f}–{high:.2f})",
            f"{each.stock_ratio:.2f}",
            f"{each.bytes / each.float_bytes:.3f}",
            *(_islands(each.fused), _islands(each.stock_fused)),
        )
    return [accuracy, latency, _elsewhere(found), _int8_goals(found)]


def _islands(fused: Fused) -> str:
    return f"{len(fused.islands)} ({percent(fused.integer_share)} % of MACs integer)"


def _elsewhere(found: quantization.Found) -> Table:
    table = _table(
        3,
        "The same int8 file on other CPUs, over some of the test images",
        *("images", "student", "CPU", "n", "top-1 % there", "here", "points apart", "differ %"),
    )
    for row in found.rows:
        for check in row.cpus:
            if check.apart is not None and check.differs is not None:
                table.add_row(
                    *(row.images, row.student, check.cpu, str(check.n), percent(check.top1)),
                    *(percent(check.host_top1), f"{check.apart:.2f}", percent(check.differs)),
                )
    return table


def _int8_goals(found: quantization.Found) -> Table:
    table = _table(1, "Goals", "what", "found", "goal")
    for row in found.rows:
        most = LOSS.get(row.student.split()[0], 0.3)
        title = f"{row.student}, {row.images}: points lost"
        table.add_row(title, points(row.loss), f"at most {most:g}")
    for each in found.timings:
        least = int8_latency.LEAST_RATIO[each.network]
        title = f"{each.network}, {int8_latency.SIZE} px: float / int8"
        table.add_row(title, f"{each.ratio:.2f}", f"at least {least:g}")
    islands = max(len(each.fused.islands) for each in (*found.rows, *found.timings))
    size = max(each.bytes / each.float_bytes for each in (*found.rows, *found.timings))
    table.add_row("float islands, most", str(islands), "0")
    table.add_row("int8 file / float file, largest", f"{size:.3f}", f"at most {SMALLEST:g}")
    simulated = min(row.simulation for row in found.rows)
    table.add_row("simulation and ONNX Runtime agree, least", f"{percent(simulated)} %", "99.5 %")
    apart = [check.apart for row in found.rows for check in row.cpus if check.apart is not None]
    if apart:
        table.add_row("points between CPUs, most", f"{max(apart):.2f}", "at most 0.2")
    return table
