"""The training loop: it learns, repeats itself exactly, and moves images as it says."""

import numpy as np
import pytest
import torch

from models.classifier import Classifier
from pipeline import training
from pipeline.augment import augment, mirror, shift
from pipeline.batches import Batches
from pipeline.context import Context
from pipeline.errors import CannotRunHereError, TrainingError
from pipeline.images import open_split
from pipeline.records import InputSpec
from pipeline.settings import Recipe, Student
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.stages.distill import Distill
from pipeline.stages.teach import Teach
from pipeline.store import Store, file_sha256
from tests.pictures import make_set

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


def test_streamed_images_train_to_the_same_weights(folder, tmp_path):
    found = []
    for place, limit in (("memory", 4096), ("stream", 0)):
        context = Context(store=Store(tmp_path / place), threads=2, device="cpu")
        dataset = data(folder, context, memory_limit_mb=limit)
        assert open_split(dataset, "train").resident == (limit > 0)
        short = STUDENT.model_copy(update={"recipe": RECIPE.model_copy(update={"epochs": 1})})
        checkpoint = Baseline().run(context, short, dataset)
        assert checkpoint is not None
        found.append(file_sha256(checkpoint.weights_path))
    assert found[0] == found[1]


def test_an_epoch_shows_each_image_once_with_its_label(folder, context):
    images = open_split(data(folder, context), "train")
    batches = Batches(images, 9, torch.device("cpu"), torch.Generator().manual_seed(0))
    seen = [(x.numpy(), y.numpy()) for x, y in batches]
    assert len(seen) == len(batches) == len(images) // 9
    rows = {image.tobytes(): label for image, label in zip(images[:], images.labels, strict=True)}
    shown = [(x.tobytes(), y) for xs, ys in seen for x, y in zip(xs, ys, strict=True)]
    assert len({x for x, _ in shown}) == len(shown) == 9 * len(batches)
    assert all(rows[x] == y for x, y in shown)


def test_mirror_flips_some_images_whole():
    images = torch.arange(2000 * 6, dtype=torch.int32).view(2000, 2, 3, 1)
    flipped = mirror(images, torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    turned = (flipped == images.flip(2)).flatten(1).all(1)
    assert (same ^ turned).all() and 900 < turned.sum() < 1100


def test_shift_moves_within_the_padding_and_fills_with_zeros():
    images = torch.zeros(500, 5, 5, 1, dtype=torch.uint8)
    images[:, 2, 2] = 255
    moved = shift(images, 2, torch.Generator().manual_seed(0))
    places = moved.squeeze(-1).flatten(1).argmax(1)
    assert moved.shape == images.shape
    assert (moved.flatten(1).sum(1) == 255).all()
    assert len(places.unique()) == 25


def test_augment_is_off_when_asked_to_be():
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert augment(images, flip=False, crop_padding=0, generator=torch.Generator()) is images


def test_the_classifier_normalises_as_its_contract_says():
    spec = InputSpec(size=4, channels=3, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    got = Classifier(torch.nn.Identity(), spec)(images).numpy()
    wanted = (images.numpy() / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(got, wanted.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(CannotRunHereError, match="cuda"):
        training.pick_device("cuda")
    assert training.pick_device("auto").type in ("cpu", "mps")


def test_precision_of_depthwise_networks_on_the_cpu_is_float32():
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4))
    cpu = torch.device("cpu")
    assert training.pick_precision(Recipe(), network, cpu) == torch.float32
    named = Recipe(precision="bf16")
    assert training.pick_precision(named, network, cpu) == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_on_cuda_learns_in_mixed_precision(folder, tmp_path):
    context = Context(store=Store(tmp_path), device="cuda")
    checkpoint = Teach(arch="resnet8_cifar", recipe=RECIPE).run(context, data(folder, context))
    assert checkpoint.device.startswith("cuda (") and checkpoint.precision != "float32"
    assert checkpoint.history[-1].val_top1 > 0.9
