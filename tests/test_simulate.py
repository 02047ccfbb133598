"""The simulation that fine-tuning trains is the graph that is shipped."""

import copy
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

import models
from pipeline.context import Context
from pipeline.errors import ExportError
from pipeline.images import open_split
from pipeline.quantization import graph
from pipeline.quantization.place import SCHEMES, place
from pipeline.quantization.simulate import Simulated, normalisation
from pipeline.settings import Recipe, Student
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.store import Store
from tests.pictures import make_set
from tests.test_place import answers, minmax

CPU_SCHEMES = [scheme for scheme in SCHEMES if scheme != "symmetric"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A MobileNetV3, which has every operator there is, that knows three kinds of pictures."""
    folder = tmp_path_factory.mktemp("simulate")
    make_set(folder / "set", train=80, test=70)
    context = Context(store=Store(folder / "store"), threads=1, device="cpu")
    dataset = Data(source="folder", folder=folder / "set").run(context)
    recipe = Recipe(epochs=10, batch_size=16, learning_rate=0.05)
    student = Student(arch="mobilenet_v3_small", width=0.35, stem_stride=1, recipe=recipe)
    checkpoint = Baseline().run(context, student, dataset)
    assert checkpoint is not None
    _, ready, front = graph.prepare(checkpoint)
    test = open_split(dataset, "test")
    ranges = minmax(ready, open_split(dataset, "train")[np.arange(0, 216, 3)])
    with torch.no_grad():
        logits = models.load(checkpoint)(torch.from_numpy(test[:])).numpy()
    return SimpleNamespace(
        ready=ready,
        front=front,
        ranges=ranges,
        spec=dataset.input,
        images=test[:],
        labels=test.labels,
        logits=logits,
        placed=place(ready, front, ranges).model,
    )


def pixels_of(placed, spec, images):
    """What the simulation is fed with in training."""
    normal = normalisation(placed, spec)
    mean, std = (np.array(each, np.float32) for each in (normal.mean, normal.std))
    pixels = (images.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def simulated(network, placed, spec, images):
    with torch.no_grad():
        return network(pixels_of(placed, spec, images)).numpy()


def gaps(one, other, placed):
    """Largest difference of the logits of each image, in their quantization steps."""
    return np.abs(one - other).max(1) / graph.constants(placed)["logits_scale"]


def test_the_student_is_worth_comparing(trained):
    assert len(trained.images) >= 200
    assert (trained.logits.argmax(1) == trained.labels).mean() > 0.9
    int8 = answers(trained.placed, trained.images)
    assert (int8.argmax(1) == trained.logits.argmax(1)).mean() > 0.9
    assert np.abs(int8 - trained.logits).max() > 0


def test_the_pixels_are_normalised_as_the_graph_says(trained):
    for scheme in ("u8s8", "s8s8", "symmetric"):
        placed = place(trained.ready, trained.front, trained.ranges, scheme).model
        found = pixels_of(placed, trained.spec, trained.images).numpy()
        wanted = (trained.images - float(trained.front.zero_point)) * trained.front.scale
        np.testing.assert_allclose(found, wanted.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("scheme", CPU_SCHEMES)
def test_it_answers_as_the_graph_does(trained, scheme):
    placed = place(trained.ready, trained.front, trained.ranges, scheme).model
    network = Simulated(placed, trained.ready, scheme)
    found = simulated(network, placed, trained.spec, trained.images)
    written = answers(placed, trained.images, optimized=False)
    # Sums in another order fall to the other side of a tie now and then.
    apart = gaps(found, written, placed)
    assert (apart < 0.01).mean() >= 0.9 and (apart < 1.01).mean() >= 0.995
    assert (found.argmax(1) == written.argmax(1)).mean() >= 0.995
    # The float student is further away than that.
    assert (gaps(trained.logits, written, placed) < 1.01).mean() < 0.9
    run = answers(placed, trained.images)
    assert (found.argmax(1) == run.argmax(1)).mean() >= 0.995


def test_layers_in_float_are_simulated_in_float(trained):
    layers = ["features.0.0", "features.4.block.2.fc1", "classifier.0", "classifier.3"]
    placed = place(trained.ready, trained.front, trained.ranges, "u8s8", layers).model
    network = Simulated(placed, trained.ready)
    found = simulated(network, placed, trained.spec, trained.images)
    written = answers(placed, trained.images, optimized=False)
    scale = graph.constants(trained.placed)["logits_scale"]
    apart = np.abs(found - written).max(1) / scale
    assert (apart < 0.05).mean() >= 0.9 and (apart < 2).mean() >= 0.995
    whole = answers(trained.placed, trained.images, optimized=False)
    assert np.abs(whole - written).max() > 2 * scale


@pytest.mark.parametrize("float_layers", [[], ["features.0.0", "classifier.3"]])
def test_gradients_reach_every_weight_and_bias(trained, float_layers):
    placed = place(trained.ready, trained.front, trained.ranges, "u8s8", float_layers).model
    network = Simulated(placed, trained.ready)
    pixels = pixels_of(placed, trained.spec, trained.images[::4])
    labels = torch.from_numpy(trained.labels[::4])
    torch.nn.functional.cross_entropy(network(pixels), labels).backward()
    gradients = {name: each.grad for name, each in network.named_parameters()}
    layers = graph.layers(trained.ready)
    assert len(gradients) == 2 * len(layers)
    silent = [name for name, each in gradients.items() if each is None or not each.any()]
    assert silent == []
    assert all(each is not None and each.isfinite().all() for each in gradients.values())


def test_a_few_steps_teach_it(trained):
    """Of weights that were spoilt, so that there is something to learn."""
    rng = np.random.default_rng(0)
    values = graph.constants(trained.ready)
    spoilt = {
        name: value * rng.normal(1, 0.2, value.shape).astype(np.float32)
        for name, value in values.items()
        if name.endswith("weight")
    }
    ready = graph.with_constants(trained.ready, spoilt)
    placed = place(ready, trained.front, trained.ranges).model
    network = Simulated(placed, ready)
    pixels, wanted = (
        pixels_of(placed, trained.spec, trained.images[::4]),
        torch.from_numpy(trained.logits[::4]).softmax(1),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(12):
        told = network(pixels).log_softmax(1)
        loss = torch.nn.functional.kl_div(told, wanted, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def changed(network, seed=1):
    """`network` with other weights and biases."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for each in network.parameters():
            each.mul_(torch.empty_like(each).uniform_(0.8, 1.2))
    return network


def test_what_was_trained_is_what_is_placed(trained):
    network = changed(Simulated(trained.placed, trained.ready))
    found = simulated(network, trained.placed, trained.spec, trained.images)
    values = network.trained()
    before = graph.constants(trained.ready)
    weighted = [n for n in trained.ready.graph.node if n.op_type in graph.WEIGHTED]
    assert values.keys() == {name for node in weighted for name in node.input[1:]}
    for name, value in values.items():
        assert value.shape == before[name].shape and value.dtype == np.float32
        assert (value != before[name]).any()
    ready = graph.with_constants(trained.ready, values)
    placed = place(ready, trained.front, trained.ranges).model
    written = answers(placed, trained.images, optimized=False)
    apart = gaps(found, written, placed)
    assert (apart < 0.01).mean() >= 0.9 and (apart < 2).mean() >= 0.99
    assert (gaps(found, answers(trained.placed, trained.images), placed) > 2).mean() > 0.5


def test_its_state_is_stored_and_loaded(trained, tmp_path):
    network = changed(Simulated(trained.placed, trained.ready))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other = Simulated(trained.placed, trained.ready)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for name, value in network.trained().items():
        np.testing.assert_array_equal(other.trained()[name], value)
    one, two = (
        simulated(each, trained.placed, trained.spec, trained.images[:20])
        for each in (network, other)
    )
    np.testing.assert_array_equal(one, two)


def test_a_copy_lives_its_own_life(trained):
    """The moving average of the weights is one."""
    network = Simulated(trained.placed, trained.ready)
    few = trained.images[:20]
    before = simulated(network, trained.placed, trained.spec, few)
    copied = changed(copy.deepcopy(network))
    again = simulated(network, trained.placed, trained.spec, few)
    np.testing.assert_array_equal(again, before)
    assert np.abs(simulated(copied, trained.placed, trained.spec, few) - before).max() > 0.01
    stored = graph.constants(trained.ready)
    assert all((stored[name] == value).all() for name, value in network.trained().items())


def test_unknown_operators_are_named(trained):
    other = onnx.ModelProto.FromString(trained.placed.SerializeToString())
    node = next(each for each in other.graph.node if each.op_type == "GlobalAveragePool")
    node.op_type = "GlobalMaxPool"
    with pytest.raises(ExportError, match=rf"GlobalMaxPool \({node.name}\) is not known"):
        Simulated(other, trained.ready)


def test_silenced_channels_are_simulated_as_they_are_placed(trained):
    """Where a bias decides on the grid of its channel's weights."""
    layer = next(n for n in trained.ready.graph.node if n.name == "features.1.block.0.0")
    values = graph.constants(trained.ready)
    weight, bias = (values[name].copy() for name in layer.input[1:])
    weight[0], bias[0], weight[1], bias[1] = 1e-12, 0.7, 0, 0.5
    spoilt = dict(zip(layer.input[1:], (weight, bias), strict=True))
    ready = graph.with_constants(trained.ready, spoilt)
    ranges = minmax(ready, trained.images[:60])
    placed, notes = place(ready, trained.front, ranges)
    assert len(notes) == 1
    network = Simulated(placed, ready)
    found = simulated(network, placed, trained.spec, trained.images)
    written = answers(placed, trained.images, optimized=False)
    apart = gaps(found, written, placed)
    assert (apart < 0.01).mean() >= 0.9 and (apart < 2).mean() >= 0.99
