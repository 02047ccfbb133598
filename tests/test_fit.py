"""The student that fits a phone: budgets, phones, the space, and a whole search on digits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import exporters
from benchmarks import graph_cost
from benchmarks.published import workload
from benchmarks.published.workload import Workload
from exporters.onnx import in_half
from pipeline import config as settings
from pipeline import pruning, references, summary
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import ConfigError
from pipeline.fit import budget, candidates, halving, outcome, pages, phone, search, space, speed
from pipeline.fit.budget import Budget
from pipeline.fit.candidates import Candidate, File, Subject
from pipeline.fit.outcome import Fit
from pipeline.fit.space import Network, Space
from pipeline.records import Dataset, InputSpec, Split
from pipeline.store import Store
from tests.conftest import LABELS, SIZE
from tests.signals import heed_interrupts
from tests.test_fit_outcome import WORK

ROOT = Path(__file__).parents[1]
BOARD = "RB3 Gen 2"
"""The one device with published latencies of int8 files."""


# ---- what is asked ----


@pytest.mark.parametrize(
    ("latency", "size", "memory", "wanted"),
    [
        ("5ms", "3MB", "20 MB", (5.0, 3_000_000, 20_000_000)),
        ("0.25 ms", "1.5mb", None, (0.25, 1_500_000, None)),
        ("250us", "512KiB", "1GB", (0.25, 524_288, 1_000_000_000)),
        ("1e-3 s", None, "800 kB", (1.0, None, 800_000)),
        (None, "2048B", None, (None, 2048, None)),
        ("250\u00b5s", "3MiB", None, (0.25, 3_145_728, None)),
        ("250\u03bcs", "1.5B", None, (0.25, 1, None)),
    ],
)
def test_amounts_with_their_units(latency, size, memory, wanted):
    found = budget.parse(latency, size, memory)
    assert (found.latency_ms, found.bytes, found.memory_bytes) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("latency", "size", "words"),
    [
        ("5", None, "unit is missing"),
        ("5 sec", None, "`sec` is no unit"),
        ("-5ms", None, "more than 0"),
        ("0ms", None, "more than 0"),
        ("fast", None, "no amount"),
        ("1.2.3ms", None, "no amount"),
        (None, "3", "unit is missing"),
        (None, "3ms", "`ms` is no unit"),
        (None, "3Mb", "`Mb` are bits"),
        (None, "3Mib", "`Mib` are bits"),
        (None, "0.5B", "less than a byte"),
        (None, "1e999MB", "more than 0"),
        (None, None, "nothing is bounded"),
    ],
)
def test_amounts_that_cannot_be_read(latency, size, words):
    with pytest.raises(ConfigError, match=words):
        budget.parse(latency, size)


@pytest.mark.parametrize("text", ["0.9", "90", "90%", " 90 %"])
def test_an_accuracy_in_any_spelling(text):
    assert budget.share("--accuracy", text) == pytest.approx(0.9)


@pytest.mark.parametrize("text", ["0", "-0.9", "101", "101%", "high", "nan", ""])
def test_an_accuracy_that_is_none(text):
    with pytest.raises(ConfigError, match="no share"):
        budget.share("--accuracy", text)


@pytest.mark.parametrize("text", ["1.5", "1.001"])
def test_an_accuracy_that_may_be_a_slip_is_asked_for_with_its_sign(text):
    with pytest.raises(ConfigError, match="more than all images") as error:
        budget.share("--accuracy", text)
    assert f"{text}%" in (error.value.remedy or "")
    assert budget.share("--accuracy", f"{text}%") == pytest.approx(float(text) / 100)


def test_bounds_are_kept_or_broken_by_so_much():
    found = Budget(latency_ms=5.0, bytes=3_000_000)
    assert found.over(5.0, 3_000_000, 10**9) == {}
    assert found.over(7.5, 3_000_000, 1) == {"latency": 1.5}
    assert found.over(7.5, 6_000_000, 1) == {"latency": 1.5, "size": 2.0}
    assert Budget(memory_bytes=100).over(9.0, 9, 250) == {"memory": 2.5}


def test_sure_holds_the_interval_to_the_bound():
    way, _ = phone.find(BOARD)
    found = phone.predicted(WORK, "fp32", way)
    between = (found.latency_ms + found.interval80[1]) / 2
    for sure, over in ((False, set()), (True, {"latency"})):
        asked = Budget(latency_ms=between, sure=sure)
        assert set(candidates.Shot.of("fp32", 1, 1, found, asked).over) == over


# ---- the phone ----


def test_phones_by_name_by_part_and_by_chip():
    board, note = phone.find("rb3 gen 2")
    assert (board.runtime, board.unit, note) == ("onnxruntime", "CPU", "")
    assert board.precisions == ("fp32", "int8")
    assert "fp16" in phone.without_rows(board, ("fp32", "fp16", "int8"))
    galaxy, _ = phone.find("Galaxy S24")
    assert galaxy.runtime == "onnxruntime", "it errs less than LiteRT and QNN there"
    assert phone.find("galaxy s24", runtime="QNN NPU")[0].runtime == "qnn"
    pixel, note = phone.find("Pixel 4")
    assert "855+" in pixel.device and "2.84" in note and pixel.threads == 1
    assert phone.find("google pixel 4", threads=4)[0].threads == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phone": "Pixel 99"}, "Known: .*Galaxy S24"),
        ({"phone": "Galaxie S24"}, "Did you mean `Samsung Galaxy S24`"),
        ({"phone": "snapdragon 8"}, "which one, "),
        ({"phone": BOARD, "runtime": "ncnn"}, "There are: onnxruntime CPU"),
        ({"phone": "Pixel 4", "threads": 3}, "There are: .*1 thread"),
    ],
)
def test_phones_that_are_not_known(options, words):
    with pytest.raises(ConfigError, match=words):
        phone.find(**options)


# ---- the space ----


def config_of(**more):
    return Config.model_validate({"name": "x", "data": {"source": "digits"}, **more})


def test_small_images_vary_the_stem_and_large_ones_the_resolution():
    small, large = space.of(config_of(), 28), space.of(config_of(), 224)
    assert (small.strides, small.sizes) == ((1, 2), (28,))
    assert (large.strides, large.sizes) == ((2,), (224, 160, 128))
    assert space.of(config_of(), 28, (20, 28)).sizes == (28, 20)
    assert len(set(small.networks)) == len(small.networks)
    wide = [each for each in small.networks if not space.has_widths(each.arch)]
    assert wide and {each.width for each in wide} == {1.0}


def test_pretrained_weights_fix_what_they_were_trained_with(tmp_path):
    hub = space.of(config_of(student={"pretrained": {"weights": "hub"}}), 224)
    assert hub.widths == (1.0,) and len(hub.archs) > 1 and "hub" in hub.notes[-1]
    file = {"weights": str(tmp_path / "w.pt")}
    own = {"arch": "mobilenet_v3_small", "width": 0.5, "pretrained": file}
    found = space.of(config_of(student=own), 28)
    assert (found.archs, found.widths) == (("mobilenet_v3_small",), (0.5,))


def test_layers_named_of_one_network_are_refused():
    with pytest.raises(ConfigError, match="float_layers"):
        space.of(config_of(quantize={"float_layers": ["features.0.0"]}), 28)


def test_a_network_becomes_the_student_with_all_else_as_it_was():
    config = config_of(student={"dropout": 0.1, "recipe": {"epochs": 7}})
    network = Network(arch="mobilenet_v3_small", width=0.35, stem_stride=1, size=28)
    student = network.student(config)
    assert (student.arch, student.width, student.stem_stride) == ("mobilenet_v3_small", 0.35, 1)
    assert (student.dropout, student.recipe.epochs) == (0.1, 7)


# ---- untrained students ----


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Colour images of the students that `conftest` exports."""
    some = Split(n=1, labels="labels.npy")
    spec = InputSpec(size=SIZE, channels=3, mean=(0.5, 0.45, 0.4), std=(0.3, 0.25, 0.2))
    data = Dataset(
        source="x", labels=LABELS, input=spec, train=some, val=some, test=some, digest="0"
    )
    context = Context(store=Store(tmp_path_factory.mktemp("store")), device="cpu", threads=1)
    export = exporters.load("onnx").Settings()
    return Subject(context, data, export, ("fp32", "fp16", "int8"))


def test_the_predicted_files_are_those_that_are_exported(subject, float_onnx, tmp_path):
    """`float_onnx` is the real file of the same network, by the exporter that ships it."""
    network = Network(arch="mobilenet_v2", width=0.35, stem_stride=1, size=SIZE)
    fp32, fp16, int8 = candidates.look(subject, network).files
    real, half = workload.of(float_onnx.path), tmp_path / "half.onnx"
    onnx.save(in_half(onnx.load(float_onnx.path)), half)
    assert fp32.bytes == pytest.approx(float_onnx.path.stat().st_size, rel=0.01)
    assert fp16.bytes == pytest.approx(half.stat().st_size, rel=0.01)
    for file, path in ((fp32, float_onnx.path), (fp16, half)):
        memory = graph_cost.cost(path).memory_bytes
        assert file.memory_bytes == pytest.approx(memory, rel=0.01)
    for name in ("dense_macs", "depthwise_macs", "moved_elements", "kernels"):
        assert getattr(fp32.work, name) == getattr(fp16.work, name) == getattr(real, name)
        assert getattr(int8.work, name) == pytest.approx(getattr(real, name), rel=0.05)
    assert int8.bytes < fp16.bytes < fp32.bytes


def test_a_space_no_larger_than_the_trials_is_enumerated(subject):
    small = Space(("mobilenet_v3_small",), (0.25, 0.35), (1, 2), (SIZE,))
    way, _ = phone.find(BOARD)
    asked = search.Question(small, way, Budget(bytes=450_000), 8, 0)
    found = search.search(asked, subject)
    titles = sorted(each.candidate.network.title for each in found.looked)
    assert titles == sorted(each.title for each in small.networks)
    assert found.fitting and all(each.shot.bytes <= 450_000 for each in found.fitting)
    for each in found.looked:
        least = min(shot.bytes for shot in each.shots)
        assert each.fits == (least <= 450_000)
        if each.fits:  # the most exact of those that fit
            better = each.shots[: each.shots.index(each.shot)]
            assert all(shot.bytes > 450_000 for shot in better)


def test_a_larger_space_is_searched_from_the_smallest_on_and_always_in_the_same_order(subject):
    large = Space(("mobilenet_v3_small",), (0.25, 0.35, 0.5), (1, 2), (SIZE, 24, 16))
    way, _ = phone.find(BOARD)
    asked = search.Question(large, way, Budget(latency_ms=0.2), 4, 3)
    first, again = search.search(asked, subject), search.search(asked, subject)
    assert first.looked == again.looked and len(first.looked) == 4
    smallest = Network(arch="mobilenet_v3_small", width=0.25, stem_stride=2, size=16)
    assert smallest in [each.candidate.network for each in first.looked]


# ---- who is trained ----


def looked(capacities, way, latency=lambda capacity: capacity):
    """Networks of these capacities, in millions; a larger one is never cheaper."""
    found = []
    for at, capacity in enumerate(capacities):
        amount = int(1e6 * capacity)
        work = Workload(
            dense_macs=amount,
            depthwise_macs=0,
            parameters=amount,
            moved_elements=int(1e6 * latency(capacity)),
            peak_elements=1000,
            kernels=50,
        )
        file = File(precision="fp32", bytes=4 * amount, memory_bytes=4 * amount, work=work)
        network = Network(arch="mobilenet_v2", width=1 + at / 100, stem_stride=1, size=28)
        candidate = Candidate(network=network, params=amount, files=(file,), missing={})
        shots = candidates.shots(candidate, way, Budget(bytes=10**9))
        found.append(search.Looked(candidate, tuple(shots)))
    return found


def test_the_few_are_of_the_front_and_unlike_one_another():
    way, _ = phone.find(BOARD)
    known = looked([8.0, 7.9, 7.8, 4.0, 3.9, 2.0, 1.0], way)
    beaten = known[-1]._replace(candidate=known[-2].candidate, shots=known[0].shots)
    few = halving.shortlist([*known, beaten], 4)
    assert [each.candidate.capacity / 1e6 for each in few] == pytest.approx([8.0, 4.0, 2.0, 1.0])
    more = halving.shortlist(known, 6)
    assert [round(each.candidate.capacity / 1e6, 1) for each in more] == [8.0, 7.9, 7.8, 4, 2, 1]
    assert beaten not in halving.shortlist([*known, beaten], 99)


class Paces(halving.Time):
    """A machine on which an epoch takes a second for each million of capacity."""

    def __init__(self, minutes, config):
        super().__init__(minutes, config, None, None, "")  # pyright: ignore[reportArgumentType]

    def epoch(self, each):
        return each.candidate.capacity / 1e6


def test_what_cannot_be_trained_in_the_time_is_left_out_and_named():
    way, _ = phone.find(BOARD)
    known = looked([80.0, 40.0, 8.0, 4.0, 2.0, 1.0], way)
    config = config_of(student={"recipe": {"epochs": 8}})  # 16 epochs with the baseline
    found = halving.plan(known, 4, 8, Paces(10, config))  # 210 s for a whole training
    assert [round(each.candidate.capacity / 1e6) for each in found.few] == [8, 4, 2, 1]
    assert [known[at].candidate.network.title in note for at, note in enumerate(found.notes)]
    assert len(found.notes) == 2 and "10 minutes" in found.notes[0]
    assert found.rungs == (1, 2)
    nothing = halving.plan(known, 4, 8, Paces(0.01, config))
    assert [round(each.candidate.capacity / 1e6) for each in nothing.few] == [1]
    assert "no network can be trained here" in nothing.notes[0] and nothing.rungs == ()


def test_an_estimate_is_kept_for_its_question_alone(tmp_path):
    config = config_of(data={"source": "digits", "limit_train": 200, "limit_test": 100})
    context = Context(store=Store(tmp_path), device="cpu", threads=2)
    data = config.data.run(context)
    network = Network(arch="mobilenet_v3_small", width=0.25, stem_stride=2, size=8)
    first, again, other = (speed.of(config, network, data, context, q) for q in ("a", "a", "b"))
    reused = [each.reused for each in context.store.outcomes if each.stage == "fit-speed"]
    assert reused == [False, True, False] and first == again and first.key != other.key
    steps = data.train.n // config.student.recipe.batch_size
    assert first.epoch_seconds == pytest.approx(first.step_seconds * steps / 2 / speed.SHARED)


def test_rungs_double_up_to_a_whole_training():
    assert halving.rungs(6, 8) == (1, 2)
    assert halving.rungs(8, 100) == (12, 24, 48)
    assert halving.rungs(1, 100) == ()
    assert halving.rungs(6, 1) == (1, 1)


# ---- the whole command ----

SETTINGS = """
name = "tiny"
device = "cpu"
threads = 1

[data]
source = "digits"
limit_train = 500
limit_test = 120

[teach]
arch = "resnet8_cifar"
recipe = { epochs = 2, batch_size = 32, learning_rate = 0.05 }

[student]
recipe = { epochs = 3, batch_size = 32, learning_rate = 0.02 }

[baseline]
enabled = false

[quantize]
calibration = "minmax"
fine_tune = { epochs = 0 }
sensitivity_images = 0
cpu_images = 0

[export]
formats = ["onnx"]
onnx = { precisions = ["int8"] }

[measure]
profile = "smoke"
"""
ASKED = ["--phone", BOARD, "--latency", "0.5ms", "--size", "0.45MB", "--trials", "4"]
BUDGET = Budget(latency_ms=0.5, bytes=450_000)


def command(folder, *words):
    line = [sys.executable, "-m", "pipeline", "fit", *words]
    return [*line, "--runs", str(folder / "runs"), str(folder / "tiny.toml")]


def fit(folder, *words, **more):
    return subprocess.run(command(folder, *words), cwd=ROOT, capture_output=True, text=True, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The settings, in a folder without runs."""
    found = tmp_path_factory.mktemp("fit")
    (found / "tiny.toml").write_text(SETTINGS, encoding="utf-8")
    return found


def interrupt(folder, stage):
    """Give the command and stop it while it works on the second result of `stage`.

    Before that and after it the store is pruned: what that took is returned.
    """
    process = subprocess.Popen(
        command(folder, *ASKED),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    store, taken = folder / "runs" / ".store", list[str]()
    try:
        while process.poll() is None:
            under_way = any((store / ".partial").glob(f"{stage}-*"))
            if under_way and any((store / stage).glob("*/record.json")):
                taken += pruned(folder)
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.001)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Run the same command again" in told
    assert "Traceback" not in told
    return [*taken, *pruned(folder)]


def pruned(folder):
    """Prune the store of these runs; names of the results that went."""
    plan = pruning.survey(folder / "runs" / ".store", folder / "runs")
    pruning.remove(plan)
    return [thing.name for thing in plan.goes if isinstance(thing, pruning.Result)]


@pytest.fixture(scope="module")
def taken(folder):
    """What pruning took of a fit in its search and on a rung, under way and stopped there."""
    if os.name != "posix":
        pytest.skip("needs POSIX signals")
    return [*interrupt(folder, "fit"), *interrupt(folder, "distill")]


@pytest.fixture(scope="module")
def done(folder, taken):
    """The command, stopped in its search, stopped again on a rung, and given once more."""
    return fit(folder, *ASKED)


@pytest.mark.slow
def test_pruning_takes_nothing_of_a_fit_under_way_stopped_or_done(folder, taken, done):
    assert taken == []
    assert done.returncode == 0, done.stderr
    assert pruned(folder) == []
    assert "tiny-fit" not in references.unfinished(folder / "runs")


@pytest.mark.slow
def test_the_winner_keeps_the_budget_and_is_what_was_exported(folder, done):
    assert done.returncode == 0, done.stderr
    home = folder / "runs" / "tiny-fit"
    text = (home / "fit.json").read_text(encoding="utf-8")
    found, report = Fit.model_validate_json(text), summary.read(home)
    assert '"schema": 1' in text and found.meets and found.winner and found.final
    shot = found.final.chosen
    assert shot and not shot.over and shot.bytes <= 450_000 and shot.latency_ms <= 0.5
    row = next(each for each in report.artifacts if each.title == "onnx int8")
    assert row.path and row.bytes == shot.bytes == (home / row.path).stat().st_size
    assert shot.prediction in row.predicted, "the report predicts the same"
    student = report.model("student")
    assert student and (student.arch, student.width) == (found.winner.arch, found.winner.width)
    before = next(each for each in found.rows if each.network == found.winner)
    assert before.best.bytes == pytest.approx(shot.bytes, rel=0.01)
    told = " ".join(done.stdout.split())
    assert before.front and "keeps the budget" in told and "It is on the front" in told


@pytest.mark.slow
def test_every_network_is_held_to_the_bounds_and_the_better_half_goes_on(folder, done):
    found = Fit.model_validate_json((folder / "runs/tiny-fit/fit.json").read_text())
    for row in found.rows:
        assert bool(row.best.over) == (row.best.latency_ms > 0.5 or row.best.bytes > 450_000)
        assert not (row.steps and row.best.over)
    trained = [row for row in found.rows if row.steps]
    assert found.rungs == (1,) and len(trained) == 3
    store = folder / "runs" / ".store"
    for row in found.rows:
        assert (store / "fit" / row.key / "record.json").exists()
        assert all((store / "distill" / step.key / "weights.pt").exists() for step in row.steps)
    best = max(row.steps[-1].val_top1 for row in trained)
    winner = next(row for row in trained if row.network == found.winner)
    assert winner.steps[-1].val_top1 == best
    page = (folder / "runs/tiny-fit/fit.md").read_text(encoding="utf-8")
    for row in found.rows:
        assert row.network.title in page
    assert "python -m pipeline fit" in page and "nothing ran there" in page


@pytest.mark.slow
def test_an_interrupted_search_ends_as_one_that_was_not(folder, done, tmp_path):
    """The rungs again in an empty store, in one go: bit for bit the same on a CPU."""
    found = Fit.model_validate_json((folder / "runs/tiny-fit/fit.json").read_text())
    config = settings.read(folder / "tiny.toml")
    context = Context(store=Store(tmp_path / "store"), device="cpu", threads=1)
    data = config.data.run(context)
    whole = Subject.of(config, context, data)
    way, _ = phone.find(BOARD)
    asked = search.Question(space.of(config, 8), way, BUDGET, 4, 0)
    again = search.search(asked, whole)
    chosen = halving.plan(again.fitting, 6, config.student.recipe.epochs, None)
    teacher = config.teach.run(context, data)
    winner, steps = halving.climb(chosen, config, context, {8: (data, teacher)})
    assert [each.candidate.network for each in again.looked] == [row.network for row in found.rows]
    assert winner.candidate.network == found.winner
    before = {row.network: [step.val_top1 for step in row.steps] for row in found.rows}
    assert {each.network: [each.val_top1] for each in steps} == {
        k: v for k, v in before.items() if v
    }


@pytest.mark.slow
def test_when_nothing_fits_it_says_what_would(folder, done):
    found = fit(folder, "--phone", BOARD, "--latency", "0.01ms", "--trials", "4")
    assert found.returncode == 1, found.stderr
    fitted = Fit.model_validate_json((folder / "runs/tiny-fit/fit.json").read_text())
    least = min(shot.latency_ms for row in fitted.rows for shot in row.shots)
    told = " ".join(found.stdout.split())
    assert "Nothing fits: none of 4 networks (of 46; --trials looks at more) keeps 0.010 ms" in told
    assert f"The least latency of any: {least:.3f} ms" in told and f"×{least / 0.01:.2f}" in told
    assert fitted.winner is None and not fitted.meets


@pytest.mark.slow
def test_an_accuracy_out_of_reach_is_said_and_fails(folder, done):
    found = fit(folder, *ASKED, "--accuracy", "99.9%")
    assert found.returncode == 1, found.stderr
    told = " ".join(found.stdout.split())
    assert "The accuracy of 99.90 % is not reached" in told and "not trained" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--phone", "Nokia 3310", "--latency", "5ms"], "no latencies are published"),
        (["--phone", BOARD, "--latency", "5"], "the unit is missing"),
        (["--phone", "Galaxy S24", "--latency", "5ms"], "latencies are published of fp16 files"),
    ],
)
def test_bad_input_is_told_before_anything_is_done(tmp_path, words, told):
    (tmp_path / "tiny.toml").write_text(SETTINGS, encoding="utf-8")
    found = fit(tmp_path, *words)
    assert found.returncode == 2 and told in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr and not (tmp_path / "runs/tiny-fit").exists()


def test_without_optuna_the_extra_is_named(tmp_path):
    """A folder that hides Optuna stands in for an environment without it."""
    (tmp_path / "optuna").mkdir()
    (tmp_path / "optuna" / "__init__.py").write_text(
        "raise ModuleNotFoundError('no optuna', name='optuna')"
    )
    (tmp_path / "tiny.toml").write_text(SETTINGS, encoding="utf-8")
    found = fit(tmp_path, *ASKED, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert found.returncode == 2 and '".[fit]"' in found.stderr
    assert not (tmp_path / "runs").exists()


def test_a_page_of_a_search_that_is_not_over():
    way, _ = phone.find(BOARD)
    known = looked([2.0, 1.0], way)
    rows = tuple(
        outcome.Row(
            key="k",
            network=each.candidate.network,
            params=each.candidate.params,
            macs=each.candidate.macs,
            shots=each.shots,
            front=True,
            seconds=1.0,
        )
        for each in known
    )
    found = Fit(
        run="x-fit",
        command="python -m pipeline fit",
        date="today",
        data="digits",
        phone=way.title,
        budget=Budget(bytes=10**9),
        space=3,
        rows=rows,
        refused={"a network": "no <such> operator"},
        epochs=8,
        seconds={},
    )
    text, page = pages.markdown(found), pages.to_html(found)
    for told in ("none of them has been trained", *(each.network.title for each in rows)):
        assert told in text and told in page
    assert "no &lt;such&gt; operator" in page and "<such>" not in text.replace("\\<such\\>", "")
    assert 'id="costs"' in page and 'id="rungs"' not in page, "nothing was trained"
    assert Fit.model_validate_json(found.model_dump_json(by_alias=True)) == found
