"""The training loop: it learns, repeats itself exactly, and moves images as it says."""

import json
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models.classifier import Classifier
from pipeline import cuda_graph, devices, evaluation, jobs, losses, training
from pipeline.context import Context
from pipeline.errors import CannotRunHereError, ConfigError, DataError, TrainingError
from pipeline.images import open_split
from pipeline.metrics import Logs
from pipeline.records import InputSpec
from pipeline.settings import Augment, Pretrained, Recipe, Student
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.stages.distill import Distill
from pipeline.stages.teach import Teach
from pipeline.store import Store, file_sha256
from pipeline.team import Team
from tests.pictures import make_set
from tests.test_resume import finish
from tests.train_small import settings

RECIPE = Recipe(epochs=8, batch_size=16, learning_rate=0.05)
STUDENT = Student(arch="mobilenet_v3_small", width=0.25, recipe=RECIPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def context(tmp_path):
    return Context(store=Store(tmp_path / "store"), threads=2, device="cpu")


def data(folder, context, **settings):
    return Data(source="folder", folder=folder, **settings).run(context)


def test_teacher_and_student_learn_and_the_history_says_so(folder, context):
    dataset = data(folder, context)
    teacher = Teach(arch="resnet8_cifar", recipe=RECIPE).run(context, dataset)
    assert teacher.history[-1].val_top1 > 0.9
    assert teacher.history[-1].loss < teacher.history[0].loss
    student = Distill().run(context, STUDENT, teacher, dataset)
    assert student.history[-1].loss < student.history[0].loss
    assert (student.role, student.params) == ("student", sum_parameters(student, dataset))


def test_a_training_that_diverges_is_an_error_and_kept_nowhere(folder, context):
    wild = Recipe(epochs=2, batch_size=16, learning_rate=1e6)
    with pytest.raises(TrainingError, match="diverged in epoch"):
        Teach(arch="resnet8_cifar", recipe=wild).run(context, data(folder, context))
    assert not (context.store.root / "teach").exists()


def sum_parameters(checkpoint, dataset):
    state = torch.load(checkpoint.weights_path, weights_only=True)
    counted = [v for k, v in state.items() if "running" not in k and "batches" not in k]
    return sum(value.numel() for value in counted)


def test_same_seed_same_weights_another_seed_others(folder, tmp_path):
    found = []
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        context = Context(store=Store(tmp_path / place), threads=2, device="cpu", seed=seed)
        short = STUDENT.model_copy(update={"recipe": RECIPE.model_copy(update={"epochs": 1})})
        checkpoint = Baseline().run(context, short, data(folder, context))
        assert checkpoint is not None
        found.append(file_sha256(checkpoint.weights_path))
    assert found[0] == found[1] != found[2]


def short(**changes):
    return STUDENT.model_copy(update={"recipe": RECIPE.model_copy(update={"epochs": 1} | changes)})


@pytest.mark.parametrize(
    "augment", [Augment(), Augment(policy="trivial_augment", erasing=0.5, mixup=1.0, cutmix=1.0)]
)
def test_streamed_images_train_to_the_same_weights(folder, tmp_path, augment):
    found = []
    for place, limit in (("memory", 4096), ("stream", 0)):
        context = Context(store=Store(tmp_path / place), threads=2, device="cpu")
        dataset = data(folder, context, memory_limit_mb=limit)
        assert open_split(dataset, "train").resident == (limit > 0)
        checkpoint = Baseline().run(context, short(augment=augment), dataset)
        assert checkpoint is not None
        found.append(file_sha256(checkpoint.weights_path))
    assert found[0] == found[1]


def test_streamed_images_are_cropped_as_they_are_decoded(folder, context):
    dataset = data(folder, context, memory_limit_mb=0)
    checkpoint = Baseline().run(context, short(augment=Augment(resized_crop=0.3)), dataset)
    whole = Baseline().run(context, short(), dataset)
    assert checkpoint is not None and whole is not None
    assert np.isfinite(checkpoint.history[-1].loss)
    assert checkpoint.history[-1].loss != whole.history[-1].loss


@pytest.mark.parametrize("method", losses.names())
@pytest.mark.parametrize("views", [0, 2])
def test_every_method_trains_a_student_with_two_classes_too(method, views, tmp_path):
    folder = make_set(tmp_path / "set", train=40, classes=2)
    context = Context(store=Store(tmp_path / "store"), threads=2, device="cpu")
    dataset = data(folder, context)
    teacher = Teach(arch="resnet8_cifar", recipe=RECIPE).run(context, dataset)
    # A gentle rate: correlations, which `dist` compares, are steep where logits hardly differ yet.
    changes = {"augment": Augment(mixup=1.0), "epochs": 12, "learning_rate": 0.005}
    recipe = RECIPE.model_copy(update=changes)
    student = STUDENT.model_copy(update={"recipe": recipe})
    distill = Distill(method=method, views=views)
    found = distill.run(context, student, teacher, dataset)
    assert found.history[-1].loss < found.history[0].loss
    assert len(list((context.store.root / "answers").glob("*"))) == views


def test_padding_as_large_as_the_image_is_refused(folder, context):
    with pytest.raises(ConfigError, match=r"student.recipe.augment.crop_padding: 16 pixels"):
        Baseline().run(context, short(augment=Augment(crop_padding=16)), data(folder, context))


def test_a_batch_that_cannot_be_shared_is_refused():
    def size(batch, images, processes):
        job = jobs.Job(role="teacher", arch="x", recipe=Recipe(batch_size=batch))
        return training._batch_size(job, images, processes)

    assert (size(16, 100, 1), size(16, 100, 4), size(16, 9, 1), size(16, 9, 4)) == (16, 16, 9, 8)
    for batch in (15, 4):
        with pytest.raises(ConfigError, match=rf"teach.recipe.batch_size: {batch} images"):
            size(batch, 100, 4)
    with pytest.raises(DataError, match="fewer than two for each process"):
        size(16, 7, 4)


def test_a_method_for_mixed_images_asks_for_them(context):
    with pytest.raises(ConfigError, match=r"function_matching.*mixes none"):
        Distill(method="function_matching").check(STUDENT)


def test_kept_answers_are_those_of_the_running_teacher(folder, context):
    """With as many views as epochs both see the same images; float16 is all that differs."""
    dataset = data(folder, context)
    teacher = Teach(arch="resnet8_cifar", recipe=RECIPE).run(context, dataset)
    augment = Augment(crop_padding=1, policy="rand_augment", mixup=0.3)
    student = short(epochs=2, augment=augment)
    live = Distill(views=0).run(context, student, teacher, dataset)
    kept = Distill(views=2).run(context, student, teacher, dataset)
    again = Distill(views=1).run(context, student, teacher, dataset)
    assert kept.history[0].loss == pytest.approx(live.history[0].loss, rel=1e-3)
    assert kept.history[1].loss == pytest.approx(live.history[1].loss, rel=1e-2)
    assert again.history[0].loss == kept.history[0].loss
    assert again.history[1].loss != kept.history[1].loss


def test_the_average_of_the_weights_is_what_is_kept(folder, context):
    dataset = data(folder, context)
    plain, averaged = (
        Baseline().run(context, short(epochs=3, ema=ema), dataset) for ema in (0.0, 0.99)
    )
    assert plain is not None and averaged is not None
    assert [e.loss for e in plain.history] == [e.loss for e in averaged.history]
    assert file_sha256(plain.weights_path) != file_sha256(averaged.weights_path)
    # What was judged on the validation split is what is kept.
    val, cpu = open_split(dataset, "val"), torch.device("cpu")
    for found in (plain, averaged):
        top1 = evaluation.top1(models.load(found), val, cpu, torch.float32, Team())
        assert top1 == found.history[-1].val_top1


def test_a_pretrained_teacher_learns_other_classes(tmp_path, context):
    """Pretrained on one set, fine-tuned on another: a frozen phase, then a slower body."""
    many = make_set(tmp_path / "many", train=60)
    two = make_set(tmp_path / "two", train=40, classes=2)
    first = Teach(arch="resnet8_cifar", recipe=RECIPE).run(context, data(many, context))
    recipe = RECIPE.model_copy(update={"epochs": 1})
    scratch = Teach(arch="resnet8_cifar", recipe=recipe).run(context, data(two, context))
    for frozen, rate in ((1, 1.0), (0, 0.1)):
        start = Pretrained(weights=first.weights_path, frozen_epochs=frozen, body_rate=rate)
        tuned = Teach(arch="resnet8_cifar", pretrained=start, recipe=recipe)
        found = tuned.run(context, data(two, context))
        assert found.start == str(first.weights_path) and len(found.labels) == 2
        assert found.history[0].loss < 0.8 * scratch.history[0].loss
        before, after = (torch.load(c.weights_path) for c in (first, found))
        body = [name for name in before if before[name].shape == after[name].shape]
        moved = max((after[n].float() - before[n].float()).abs().max().item() for n in body)
        assert (moved == 0) == (frozen == 1)


def test_every_epoch_is_written_down(folder, context):
    found = Baseline().run(context, short(epochs=3), data(folder, context))
    assert found is not None
    lines = (found.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert all(json.loads(line)["images_per_second"] > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(not devices.CLEAR.exists(), reason="needs Linux: a peak that can be reset")
def test_memory_does_not_grow(folder, tmp_path):
    """In a process of its own; each epoch's own peak, so that an earlier one hides nothing."""
    more = {"distill": {"views": 2}, "teach": {"arch": "resnet8_cifar"}}
    more["student"] = settings("")["student"] | {"recipe": {"epochs": 20, "batch_size": 16}}
    found, _ = finish(folder, tmp_path, seconds=1e9, more=more)
    memory = found["student"]["memory"]
    assert len(memory) == 20
    later, earlier = np.median(memory[-5:]), np.median(memory[5:10])
    assert later - earlier < 2e6, memory


def test_tensorboard_shows_losses_and_accuracies(folder, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logs = Logs(tmp_path / "run", tensorboard=True)
    context = Context(store=Store(tmp_path / "store"), device="cpu", logs=logs)
    found = Baseline().run(context, short(epochs=2), data(folder, context))
    assert found is not None
    events = accumulator.EventAccumulator(str(logs.board("baseline-seed0")))
    events.Reload()
    losses = [point.value for point in events.Scalars("loss/train")]
    assert losses == pytest.approx([epoch.loss for epoch in found.history])
    assert [point.step for point in events.Scalars("top1/validation")] == [1, 2]
    plain = logs.file("baseline-seed0").read_text()
    assert plain == (found.folder / "metrics.jsonl").read_text()
    # A run that finds the training in the store shows the same.
    later = Logs(tmp_path / "later", tensorboard=True)
    later.show("baseline-seed0", found.history)
    events = accumulator.EventAccumulator(str(later.board("baseline-seed0")))
    events.Reload()
    assert [point.value for point in events.Scalars("loss/train")] == losses
    assert later.file("baseline-seed0").read_text() == plain


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile needs a C++ compiler and Python's headers here",
)
def test_a_compiled_network_learns_too(folder, context):
    recipe = RECIPE.model_copy(update={"compile": True, "epochs": 2})
    found = Teach(arch="resnet8_cifar", recipe=recipe).run(context, data(folder, context))
    assert found.history[-1].loss < found.history[0].loss


def test_the_classifier_normalises_as_its_contract_says():
    spec = InputSpec(size=4, channels=3, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    got = Classifier(torch.nn.Identity(), spec)(images).numpy()
    wanted = (images.numpy() / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(got, wanted.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(CannotRunHereError, match="cuda"):
        devices.pick_device("cuda")
    assert devices.pick_device("auto").type in ("cpu", "mps")


def test_precision_of_depthwise_networks_on_the_cpu_is_float32():
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4))
    cpu = torch.device("cpu")
    assert devices.pick_precision(Recipe(), network, cpu) == torch.float32
    named = Recipe(precision="bf16")
    assert devices.pick_precision(named, network, cpu) == torch.bfloat16


@pytest.mark.parametrize("arch", ["mobilenet_v4_conv_small", "mobilenet_v2"])
def test_batch_normalisation_over_processes_leaves_the_network_as_it_is(arch):
    """timm's normalisation layers hold activations, which a plain conversion would lose."""
    torch.manual_seed(0)
    network = models.build(arch, classes=3, channels=3, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before, after = network(images), training.synchronised(network)(images)
    assert torch.equal(before, after)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("views", [0, 2])
def test_a_step_on_cuda_waits_for_nothing(folder, tmp_path, views, monkeypatch):
    """Neither while it is launched kernel by kernel nor as a graph, which is asked for here."""
    context = Context(store=Store(tmp_path), device="cuda")
    dataset = data(folder, context)
    teacher = Teach(arch="resnet8_cifar", recipe=RECIPE).run(context, dataset)
    update = training._Trainer._update

    def strict(self, batch):
        recording = self._done in (0, cuda_graph.WARM)
        torch.cuda.set_sync_debug_mode("default" if recording else "error")
        try:
            return update(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training._Trainer, "_update", strict)
    student = short(epochs=2, augment=Augment(crop_padding=1, mixup=1.0))
    found = Distill(views=views).run(context, student, teacher, dataset)
    assert np.isfinite(found.history[-1].loss)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_on_cuda_learns_in_mixed_precision(folder, tmp_path):
    context = Context(store=Store(tmp_path), device="cuda")
    checkpoint = Teach(arch="resnet8_cifar", recipe=RECIPE).run(context, data(folder, context))
    assert checkpoint.device.startswith("cuda (") and checkpoint.precision != "float32"
    assert checkpoint.history[-1].val_top1 > 0.9
