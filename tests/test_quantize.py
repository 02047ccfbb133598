"""The quantize stage on a small trained student."""

import pytest

from pipeline.context import Context
from pipeline.settings import Augment, Recipe, Student
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from tests.pictures import make_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize")
    make_set(folder / "set", train=80, test=20)
    context = Context(store=Store(folder / "store"), threads=2, device="cpu")
    dataset = Data(source="folder", folder=folder / "set").run(context)
    recipe = Recipe(epochs=10, batch_size=16, learning_rate=0.05)
    student = Student(arch="mobilenet_v2", width=0.25, stem_stride=1, recipe=recipe)
    checkpoint = Baseline().run(context, student, dataset)
    return context, dataset, checkpoint


def test_switched_off(trained):
    context, dataset, checkpoint = trained
    off = Quantize(enabled=False)
    assert off.run(context, checkpoint, checkpoint, dataset, Augment()) is None
