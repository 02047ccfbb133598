"""The quantize stage on small students: one that int8 suits, and one that it ruins."""

import hashlib
from types import SimpleNamespace
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

import models
from pipeline import emulators
from pipeline.context import Context
from pipeline.errors import ConfigError, DataError
from pipeline.images import open_split
from pipeline.quantization import fused, graph, histogram
from pipeline.quantization.search import Search, Subject
from pipeline.quantization.settings import FineTune
from pipeline.settings import Augment, Recipe, Student, read_table
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from runtime import onnx_runtime
from tests.pictures import make_set

METHODS = ("minmax", "percentile", "entropy", "mse")
SETTINGS = Quantize(
    calibration_images=64,
    fine_tune=FineTune(epochs=1, batch_size=32, guide="student"),
    sensitivity_images=0,
)
RUINED = "features.2.conv.2"
"""A projection with no way around it."""
SHAPE = (16, 16, 1)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A machine on which no emulator was fetched: they would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(emulators.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bare):
    folder = tmp_path_factory.mktemp("quantize")
    make_set(folder / "set", train=80, test=40)
    context = Context(store=Store(folder / "store"), threads=1, device="cpu")
    dataset = Data(source="folder", folder=folder / "set").run(context)
    recipe = Recipe(epochs=10, batch_size=16, learning_rate=0.05)
    student = Student(arch="mobilenet_v2", width=0.25, stem_stride=1, recipe=recipe)
    checkpoint = Baseline().run(context, student, dataset)
    assert checkpoint is not None
    return SimpleNamespace(context=context, dataset=dataset, student=checkpoint, folder=folder)


def quantize(trained, settings, **changes):
    it = SimpleNamespace(**{**vars(trained), **changes})
    return settings.run(it.context, it.student, it.student, it.dataset, Augment())


@pytest.fixture(scope="module")
def quantized(trained):
    return quantize(trained, SETTINGS)


@pytest.fixture(scope="module")
def ruined(trained):
    """A student with a layer that int8 ruins, though float is none the worse for it.

    One input channel of the layer is always 0, and has weights so large that on their grid all
    other weights are 0, too.
    """
    folder = trained.folder / "ruined"
    folder.mkdir()
    state = torch.load(trained.student.weights_path, weights_only=True)
    state["features.2.conv.1.1.weight"][0] = 0
    state["features.2.conv.1.1.bias"][0] = -1
    state[f"{RUINED}.weight"][:, 0] = 1e4
    torch.save(state, folder / "weights.pt")
    student = trained.student.model_copy(update={"folder": folder, "key": "ruined"})
    settings = Quantize(
        calibration_images=64,
        calibration="minmax",
        fine_tune=FineTune(epochs=0),
        sensitivity_images=12,
        max_drop=5,
        scheme="u8s8",
    )
    return quantize(trained, settings, student=student)


def answers(trained, student, split: Literal["val", "test"] = "test"):
    images = open_split(trained.dataset, split)
    with torch.no_grad():
        return models.load(student)(torch.from_numpy(images[:])).numpy().argmax(1)


def named(result, file, images):
    return onnx_runtime.open(result.folder / file, threads=1).run(images).argmax(1)


# ---- a student that int8 suits ----


def test_every_method_is_tried_and_the_best_graph_kept(quantized):
    assert [trial.name for trial in quantized.trials] == [*METHODS, "fine-tuned"]
    (kept,) = [trial for trial in quantized.trials if trial.kept]
    best = max((trial.val_top1, trial.agreement) for trial in quantized.trials)
    assert (kept.val_top1, kept.agreement) == best
    assert all(0 < trial.agreement <= 1 for trial in quantized.trials)
    assert quantized.calibration.method in METHODS
    assert quantized.calibration.method == kept.name or kept.name == "fine-tuned"


def test_the_trial_is_what_the_file_gives_on_the_validation_split(quantized, trained):
    val = open_split(trained.dataset, "val")
    (kept,) = [trial for trial in quantized.trials if trial.kept]
    found = named(quantized, quantized.int8, val[:])
    student = answers(trained, trained.student, "val")
    assert kept.val_top1 == (found == val.labels).mean()
    assert kept.agreement == (found == student).mean()
    assert quantized.float_val_top1 == (student == val.labels).mean()


def test_both_graphs_answer_as_the_student_does(quantized, trained):
    test = open_split(trained.dataset, "test")
    student = answers(trained, trained.student)
    assert (student == test.labels).mean() > 0.85
    for file in (quantized.int8, quantized.int8_symmetric, quantized.weights):
        assert (named(quantized, file, test[:]) == student).mean() > 0.95


def test_all_of_it_runs_in_integers(quantized):
    assert quantized.fused.integer_share == 1.0 and quantized.fused.islands == ()
    assert quantized.fused.operators["QLinearConv"] == 52
    again = fused.examine(quantized.folder / quantized.int8, SHAPE)
    assert again == quantized.fused


def test_the_scheme_stays_where_no_other_cpu_can_be_asked(quantized):
    assert quantized.scheme == "u8s8" and quantized.rescue is None
    assert {check.cpu for check in quantized.checks} == {"haswell", "arm64"}
    assert all(check.n == 0 and check.skipped for check in quantized.checks)


def test_again_elsewhere_it_is_the_same_to_the_byte(quantized, trained):
    context = Context(store=Store(trained.folder / "elsewhere"), threads=1, device="cpu")
    again = quantize(trained, SETTINGS, context=context)
    assert again is not None and again.folder != quantized.folder and again.key == quantized.key
    for file in (quantized.int8, quantized.int8_symmetric, quantized.weights):
        one, two = (
            hashlib.sha256((each.folder / file).read_bytes()).hexdigest()
            for each in (quantized, again)
        )
        assert one == two
    assert again.trials == quantized.trials


def test_it_is_found_in_the_store(quantized, trained, monkeypatch):
    def refuse(*_):
        raise AssertionError("prepared again")

    monkeypatch.setattr(graph, "prepare", refuse)
    assert quantize(trained, SETTINGS) == quantized


def test_the_weights_that_were_rounded_are_told(quantized, trained):
    """The student's own, or those that were trained on."""
    kept = next(trial.name for trial in quantized.trials if trial.kept)
    state = torch.load(trained.student.weights_path, weights_only=True)
    before = state["classifier.1.weight"].numpy()
    after = graph.constants(onnx.load(quantized.folder / quantized.weights))
    weight = after["network.classifier.1.weight"]
    assert (weight != before).any() == (kept == "fine-tuned")
    np.testing.assert_allclose(weight, before, atol=0.1)
    placed = graph.constants(onnx.load(quantized.folder / quantized.int8))
    rounded = placed["network.classifier.1.weight_quantized"]
    scale = placed["network.classifier.1.weight_scale"][:, None]
    np.testing.assert_array_equal(rounded, np.round(weight / scale))


# ---- one that it ruins ----


def test_the_layer_that_int8_ruins_is_found_and_kept_in_float(ruined):
    rescue = ruined.rescue
    assert rescue is not None
    assert rescue.drop_before > 20 and rescue.drop <= rescue.max_drop == 5
    assert rescue.float_layers == (RUINED,)
    assert rescue.latency_ratio > 0 and rescue.bytes > rescue.bytes_before
    assert 1 < rescue.tried <= 8


def test_it_really_is_in_float(ruined):
    model = onnx.load(ruined.folder / ruined.weights)
    macs = graph.layer_macs(model)
    assert ruined.fused.float_macs == macs[RUINED] > 0
    assert ruined.fused.integer_macs == sum(macs.values()) - macs[RUINED]
    assert [island.reason for island in ruined.fused.islands] == [fused.KEPT]
    weights = graph.constants(onnx.load(ruined.folder / ruined.int8))
    assert weights[f"network.{RUINED}.weight"].dtype == np.float32


def test_every_layer_has_its_loss_and_the_ruined_one_stands_out(ruined):
    found = ruined.sensitivity
    model = onnx.load(ruined.folder / ruined.weights)
    assert {each.layer: each.macs for each in found.layers} == graph.layer_macs(model)
    assert found.n == 12 and found.float_top1 > found.int8_top1 + 0.2
    best = max(found.layers, key=lambda each: each.snr_db)
    assert best.layer == RUINED and best.snr_db > found.int8_snr_db + 6
    assert best.val_top1 == max(each.val_top1 for each in found.layers)


def test_with_it_both_graphs_answer_as_the_float_graph(ruined, trained):
    images = open_split(trained.dataset, "test")[:]
    wanted = named(ruined, ruined.weights, images)
    for file in (ruined.int8, ruined.int8_symmetric):
        assert (named(ruined, file, images) == wanted).mean() > 0.9


def test_of_one_method_without_fine_tuning_there_is_one_trial(ruined):
    assert [(each.name, each.kept) for each in ruined.trials] == [("minmax", True)]
    assert ruined.calibration.method == "minmax"
    assert ruined.checks == ()  # the scheme was given


# ---- calibration ----


@pytest.fixture
def start(monkeypatch, quantized):
    """Makes searches start from the float graph that is there already, with other constants."""

    def start(**spoilt):
        ready = graph.with_constants(onnx.load(quantized.folder / quantized.weights), spoilt)
        ready = onnx.shape_inference.infer_shapes(ready)
        values = graph.constants(ready)
        front = graph.Front(float(values[graph.PIXEL_SCALE]), int(values[graph.PIXEL_ZERO_POINT]))
        monkeypatch.setattr(graph, "prepare", lambda _: graph.Prepared(ready, ready, front))
        return ready

    start()
    return start


def test_the_method_that_is_kept_is_the_best_of_all(start, trained):
    """Where two name as many images rightly, by their noise."""

    def best(calibration):
        settings = SETTINGS.model_copy(
            update={"calibration": calibration, "fine_tune": FineTune(epochs=0), "cpu_images": 0}
        )
        subject = Subject(
            trained.context, trained.student, trained.student, trained.dataset, Augment()
        )
        made, trials, _ = Search(settings, subject).agreeing()
        return made, len(trials)

    alone = {method: best(method) for method in METHODS}
    assert all(tried == 1 for _, tried in alone.values())
    scores = {method: made.score for method, (made, _) in alone.items()}
    assert len(set(scores.values())) > 1
    kept, tried = best("best")
    assert tried == len(METHODS)
    assert kept.score == scores[kept.method] == max(scores.values())


def test_fine_tuning_mends_what_rounding_broke(start, trained):
    """A layer of whose weights hardly one is left; other layers can make up for it."""
    before = start()
    nodes = {node.name: node for node in before.graph.node}
    values = graph.constants(before)
    silenced, ruined = nodes[RUINED.replace("2.conv.2", "2.conv.1.0")], nodes[RUINED]
    weight, dead, bias = (values[name].copy() for name in (ruined.input[1], *silenced.input[1:]))
    weight[:, 0] = 200 * np.abs(weight).max()
    dead[0], bias[0] = 0, -1
    names = (ruined.input[1], *silenced.input[1:])
    spoilt = start(**dict(zip(names, (weight, dead, bias), strict=True)))
    tune = FineTune(epochs=4, batch_size=16, learning_rate=0.01, guide="student")
    settings = SETTINGS.model_copy(update={"calibration": "minmax", "fine_tune": tune})
    subject = Subject(trained.context, trained.student, trained.student, trained.dataset, Augment())
    made, (plain, tuned), checks = Search(settings, subject).agreeing()
    assert made.name == tuned.name == "fine-tuned" and tuned.val_top1 == made.score.top1
    assert tuned.val_top1 > plain.val_top1 + 0.1
    assert len(checks) == 2 * 2  # other CPUs are asked again
    after, started = graph.constants(made.ready), graph.constants(spoilt)
    moved = {name for name, value in after.items() if (value != started[name]).any()}
    assert moved >= {node.input[1] for node in nodes.values() if node.op_type in graph.WEIGHTED}


@pytest.fixture
def observed(monkeypatch, start):
    """The images that calibrate a search."""

    def observe(model, batches, *rest):
        return really(model, (seen.append(batch) or batch for batch in batches), *rest)

    seen, really = [], histogram.observe
    monkeypatch.setattr(histogram, "observe", observe)

    def images(trained, settings=SETTINGS, seed=0, **splits):
        seen.clear()
        dataset = trained.dataset.model_copy(update=splits)
        context = Context(store=trained.context.store, seed=seed, threads=1)
        subject = Subject(context, trained.student, trained.student, dataset, Augment())
        searched = Search(settings, subject)
        found = np.concatenate(seen)
        assert np.array_equal(searched.calibration_images, found)
        return found

    return images


def test_training_images_calibrate_and_no_others(observed, trained):
    splits = {
        name: {image.tobytes() for image in open_split(trained.dataset, name)[:]}
        for name in ("train", "val", "test")
    }
    images = observed(trained)
    seen = {image.tobytes() for image in images}
    assert len(images) == 64 and seen <= splits["train"]
    assert not seen & splits["test"] and not seen & splits["val"]
    train = open_split(trained.dataset, "train")
    labels = [y for x, y in zip(train[:], train.labels, strict=True) if x.tobytes() in seen]
    assert min(np.bincount(labels, minlength=3)) > 5
    other = {image.tobytes() for image in observed(trained, seed=1)}
    assert other != seen and other <= splits["train"]
    everything = observed(trained, Quantize(calibration_images=10_000))
    assert len(everything) == trained.dataset.train.n


def test_too_few_training_images_are_refused(observed, trained):
    nine = trained.dataset.train.model_copy(update={"n": 9})
    with pytest.raises(DataError, match=r"only 9 training images to calibrate .* fewer than 10"):
        observed(trained, train=nine)


def test_images_that_are_all_the_same_are_refused(observed, trained):
    rows = np.zeros(40, int)
    pixels, labels = open_split(trained.dataset, "train")[rows], np.zeros(40, np.int64)
    folder = trained.dataset.folder
    np.save(folder / "same.npy", pixels)
    np.save(folder / "same-labels.npy", labels)
    facts = {"n": 40, "images": "same.npy", "labels": "same-labels.npy"}
    same = trained.dataset.train.model_copy(update=facts)
    with pytest.raises(DataError, match=r"all 40 images to calibrate .* the same picture"):
        observed(trained, train=same)
    pixels[-1, 0, 0, 0] ^= 1
    np.save(folder / "same.npy", pixels)
    assert len(observed(trained, train=same)) == 40


# ---- settings ----


def test_switched_off(trained):
    assert quantize(trained, Quantize(enabled=False)) is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"calibration_images": 5}, "quantize.calibration_images"),
        ({"calibration": "median"}, "quantize.calibration"),
        ({"max_drop": -1}, "quantize.max_drop"),
        ({"cpu_images": -1}, "quantize.cpu_images"),
        ({"fine_tune": {"epochs": -1}}, "quantize.fine_tune.epochs"),
        ({"schema": "u8u8"}, "scheme"),
    ],
)
def test_settings_that_make_no_sense_are_named(table, said):
    with pytest.raises(ConfigError, match=said):
        read_table(table, Quantize, ["quantize"])


def test_ten_images_are_enough():
    assert Quantize(calibration_images=10).calibration_images == 10
    with pytest.raises(ValidationError, match="greater than or equal to 10"):
        Quantize(calibration_images=9)
