"""Ranges: histograms that lose no value and do not grow, and methods against the raw values."""

import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.onnx import INPUT, OUTPUT
from pipeline.errors import CheckpointError, ExportError
from pipeline.quantization.calibration import METHODS, ranges
from pipeline.quantization.graph import shapes
from pipeline.quantization.histogram import ACTIVATION_BYTES, BINS, Histogram, batch_of, observe

ROOT = Path(__file__).parents[1]


def histogram(*batches):
    made = Histogram("tensor")
    for batch in batches:
        made.add(np.asarray(batch, np.float32))
    return made


def edges(made):
    return (made.first + np.arange(BINS + 1)) * made.width


def assert_counts(made, values):
    """`made` counts `values`, all of them, where `np.histogram` does."""
    values = np.asarray(values, np.float64)
    assert (made.lowest, made.highest) == (values.min(), values.max())
    assert made.count == made.counts.sum() == values.size
    assert made.zeros == (values == 0).sum()
    assert 0.0 in edges(made)
    np.testing.assert_array_equal(made.counts, np.histogram(values, edges(made))[0])


def growing(seed):
    """Batches of random sizes, scales and offsets, many times wider than the first."""
    random = np.random.default_rng(seed)
    for scale in 2.0 ** random.uniform(-8, 12, size=20):
        values = random.normal(random.normal() * scale, scale, size=random.integers(1, 3000))
        yield np.where(random.random(values.shape) < 0.1, 0, values).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_counts_are_those_of_numpy_while_the_range_grows(seed):
    made, seen = Histogram("tensor"), []
    for batch in growing(seed):
        made.add(batch)
        seen.append(batch)
        assert_counts(made, np.concatenate(seen))


@pytest.mark.parametrize("seed", range(3))
def test_how_values_are_cut_into_batches_makes_no_difference(seed):
    batches = list(growing(seed))
    whole, parts = histogram(np.concatenate(batches)), histogram(*batches[::-1])
    assert (whole.exponent, whole.first) == (parts.exponent, parts.first)
    np.testing.assert_array_equal(whole.counts, parts.counts)


@pytest.mark.parametrize("seed", range(3))
def test_at_least_about_half_of_the_bins_are_used(seed):
    made = histogram(np.concatenate(list(growing(seed))))
    used = (max(made.highest, 0) - min(made.lowest, 0)) / made.width
    assert BINS / 2 - 2 <= used <= BINS


@pytest.mark.parametrize(
    "batches",
    [
        ([0.0, 0.0], [0.0]),
        ([0.0], [-3.0, 5.0]),
        ([5.0] * 9, [5.0]),
        ([-5.0] * 9, [5.0]),
        ([1.0, 2.0], [-1e-3], [-7.0]),
        ([1e-45], [1e-45]),
        ([-1e-45, 1e-45], [-3e38], [3e38]),
        ([1.0, -1.0], [3e38, -3e38], [1e-45, -1e-45]),
        ([1.0], [2048.0], [-2048.0], [4096.0]),
        ([[[0.5], [-0.5]]], [[]], [[1.5]]),
    ],
)
def test_odd_batches_are_counted_exactly(batches):
    values = [np.asarray(batch, np.float32).ravel() for batch in batches]
    assert_counts(histogram(*batches), np.concatenate(values))


def test_a_view_of_a_transposed_array_is_counted():
    values = np.random.default_rng(0).normal(size=(30, 40, 50)).astype(np.float32)
    assert_counts(histogram(values.T[::2, ::-3]), values.T[::2, ::-3].ravel())


def test_memory_stays_over_a_thousand_batches():
    random, made = np.random.default_rng(0), Histogram("tensor")
    for step in range(1000):
        made.add(random.normal(scale=1 + step, size=500).astype(np.float32))
        held = [value for value in vars(made).values() if isinstance(value, np.ndarray)]
        assert [value.nbytes for value in held] == [8 * BINS]
    assert made.counts.sum() == 500_000
    assert set(vars(made)) == set(vars(Histogram("tensor")))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_by_name_and_not_counted(wrong):
    made = histogram([1.0, -2.0])
    before = made.counts.copy()
    with pytest.raises(CheckpointError, match="'tensor'"):
        made.add(np.array([0.0, wrong, 1.0], np.float32))
    assert (made.lowest, made.highest, made.count) == (-2.0, 1.0, 2)
    np.testing.assert_array_equal(made.counts, before)


def tiny_model():
    """The pixels, less 100, times 0.5 (`scaled`), through a ReLU (`rectified`), and their mean."""
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "offset"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "factor"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["rectified"]),
        helper.make_node("ReduceMean", ["rectified", "axes"], [OUTPUT], keepdims=0),
    ]
    constants = {
        "offset": np.array(100, np.float32),
        "factor": np.array(0.5, np.float32),
        "axes": np.array([1, 2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def random_images(batches, batch=2, size=32):
    random = np.random.default_rng(0)
    for _ in range(batches):
        yield random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("from_file", [False, True])
def test_values_inside_the_graph_are_observed(from_file, tmp_path):
    model = tiny_model()
    before = model.SerializeToString()
    if from_file:
        onnx.save(model, tmp_path / "tiny.onnx")
    source = tmp_path / "tiny.onnx" if from_file else model
    found = observe(source, random_images(3), ["rectified", "scaled", OUTPUT], threads=1)
    assert list(found) == ["rectified", "scaled", OUTPUT]
    scaled = (np.concatenate(list(random_images(3))).astype(np.float32) - 100) / 2
    assert_counts(found["scaled"], scaled.ravel())
    assert_counts(found["rectified"], np.maximum(scaled, 0).ravel())
    means = np.maximum(scaled, 0).mean((1, 2))
    assert found[OUTPUT].count == means.size
    assert found[OUTPUT].highest == pytest.approx(means.max(), rel=1e-5)
    assert model.SerializeToString() == before


def test_a_tensor_that_is_not_there_is_named():
    with pytest.raises(ExportError, match="nowhere"):
        observe(tiny_model(), random_images(1), ["nowhere"], threads=1)


def test_the_tensor_with_nan_is_named():
    model = tiny_model()
    model.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "factor")
    )
    with pytest.raises(CheckpointError, match="'scaled'"):
        observe(model, random_images(1), ["shifted", "scaled"], threads=1)


def test_ten_times_the_images_take_no_more_memory():
    def peak(batches):
        tracemalloc.start()
        observe(tiny_model(), random_images(batches, size=128), ["scaled", "rectified"], threads=1)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # imports
    # One tensor of one batch takes 393 kB.
    assert peak(50) < peak(5) + 100_000


def test_onnx_runtime_holds_no_more_after_more_passes():
    """Its memory, which tracemalloc does not see: 25 MB a pass, 400 MB if those were kept."""
    code = """
import resource, sys
from tests.test_calibration import observe, random_images, tiny_model
def peak(batches):
    observe(tiny_model(), random_images(batches, size=1024), ["rectified"], threads=1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
few = peak(4)
print((peak(20) - few) // (1 if sys.platform == "linux" else 1024))
"""
    pytest.importorskip("resource", reason="Windows has no getrusage")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100_000  # kB


def test_a_pass_stays_within_its_bound(ready):
    model, _, ranges_of = ready
    names = list(ranges_of)
    an_image = sum(math.prod(shapes(model)[name][1:]) for name in names)
    n = batch_of(model, names)
    assert 4 * an_image * n <= ACTIVATION_BYTES < 4 * an_image * (n + 1)
    assert batch_of(model, names[:1]) > n


def test_an_image_with_more_values_than_the_bound_is_a_pass_of_its_own():
    huge = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 1 << 15, 1 << 15])
    model = helper.make_model(helper.make_graph([], "huge", [], [huge]))
    assert batch_of(model, ["x"]) == 1


def quantized(values, low, high, levels, symmetric):
    """`values` as int8 gives them back."""
    step = (high - low) / (levels - 2 if symmetric else levels - 1)
    return np.clip(np.round(values / step) * step, low, high)


def error(values, span, levels=256, symmetric=False):
    low, high = span
    return np.square(quantized(values, low, high, levels, symmetric) - values).mean()


def draw(name, n=200_000):
    random = np.random.default_rng(7)
    normal, laplace = random.normal(size=n), random.laplace(size=n)
    drawn = {
        "normal": normal,
        "laplace": laplace,
        "shifted": normal + 2,
        "negative": -np.abs(normal) - 1,
        "relu": np.maximum(normal, 0),
        "sparse relu": np.maximum(laplace - 2, 0),
        "relu6": np.clip(3 * normal, 0, 6),
        "hard swish": 3 * normal * np.clip(3 * normal + 3, 0, 6) / 6,
        "student": random.standard_t(4, size=n),
        "uniform": random.uniform(-1, 3, size=n),
    }
    return drawn[name].astype(np.float32)


DRAWN = (
    *("normal", "laplace", "shifted", "negative", "relu", "sparse relu", "relu6", "hard swish"),
    *("student", "uniform"),
)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("method", METHODS)
def test_every_range_holds_zero_and_no_more_than_was_seen(method, name):
    values = draw(name)
    low, high = ranges(histogram(values), method)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
    low, high = ranges(histogram(values), method, symmetric=True)
    assert -low == high <= np.abs(values).max()


@pytest.mark.parametrize("name", DRAWN)
def test_minmax_is_exact(name):
    values = draw(name)
    made = histogram(*np.array_split(values, 7))
    assert ranges(made, "minmax") == (min(values.min(), 0), max(values.max(), 0))
    widest = float(np.abs(values).max())
    assert ranges(made, "minmax", symmetric=True) == (-widest, widest)


@pytest.mark.parametrize("name", DRAWN)
def test_percentile_is_that_of_the_raw_values_within_a_bin(name):
    values = draw(name)
    made = histogram(*np.array_split(values, 7))
    low, high = ranges(made, "percentile")
    assert low == pytest.approx(min(np.quantile(values, 0.00005), 0), abs=made.width)
    assert high == pytest.approx(max(np.quantile(values, 0.99995), 0), abs=made.width)
    low, high = ranges(made, "percentile", symmetric=True)
    assert high == pytest.approx(np.quantile(np.abs(values), 0.9999), abs=made.width)


@pytest.mark.parametrize(("levels", "tolerance"), [(256, 1.02), (16, 1.05)])
@pytest.mark.parametrize("name", DRAWN)
def test_mse_is_near_the_best_of_all_ranges_on_the_raw_values(name, levels, tolerance):
    values = draw(name, n=20_000)
    found = ranges(histogram(values), "mse", levels=levels)
    lowest, highest = min(values.min(), 0), max(values.max(), 0)
    shares = np.linspace(0.05, 1, 39)
    lows, highs = (shares * end if end else [0.0] for end in (lowest, highest))
    best = min(error(values, (low, high), levels) for low in lows for high in highs)
    assert error(values, found, levels) < tolerance * best


@pytest.mark.parametrize(("levels", "tolerance"), [(256, 1.02), (16, 1.05)])
@pytest.mark.parametrize("name", DRAWN)
def test_symmetric_mse_is_near_the_best(name, levels, tolerance):
    values = draw(name, n=20_000)
    found = ranges(histogram(values), "mse", levels=levels, symmetric=True)
    ends = np.abs(values).max() * np.linspace(0.02, 1, 400)
    best = min(error(values, (-end, end), levels, True) for end in ends)
    assert error(values, found, levels, True) < tolerance * best


OUTLIERS = np.array([60.0, 61.0, 75.0, -50.0, -66.0], np.float32)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["normal", "laplace", "shifted"])
def test_entropy_clips_outliers_and_keeps_the_mass(name, symmetric):
    values = draw(name)
    low, high = ranges(histogram(values, OUTLIERS), "entropy", symmetric=symmetric)
    assert ((values < low) | (values > high)).mean() < 0.001
    assert high < 1.1 * np.abs(values).max() and low > -1.1 * np.abs(values).max()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", DRAWN)
def test_entropy_keeps_the_mass_without_outliers(name, symmetric):
    values = draw(name)
    low, high = ranges(histogram(values), "entropy", symmetric=symmetric)
    rest = values[values != 0]
    assert ((rest < low) | (rest > high)).mean() < 0.01


def test_entropy_clips_nothing_into_an_empty_stretch():
    """Half a percent of the values could be clipped to zero, where there are none else."""
    made = histogram(np.linspace(5, 6, 1000), [-1.0] * 5)
    assert ranges(made, "entropy") == pytest.approx((-1, 6), abs=made.width)


def test_a_spike_at_zero_changes_no_range_but_the_percentile():
    """A ReLU that lets one value in a thousand through."""
    values = np.abs(draw("normal"))
    bare, spiked = histogram(values), histogram(values, np.zeros(1000 * values.size, np.float32))
    for method in ("entropy", "mse"):
        for symmetric in (False, True):
            found = ranges(spiked, method, symmetric=symmetric)
            assert found == ranges(bare, method, symmetric=symmetric)
            assert found[1] > 3


def divergence(counts, start, end, levels):
    """Migacz' pseudocode, for bins `start` to `end`, as loops."""
    inside = counts[start:end]
    reference = inside.astype(float)
    reference[0] += counts[:start].sum()
    reference[-1] += counts[end:].sum()
    n = len(inside)
    cells = [[] for _ in range(min(levels, n))]
    for place in range(n):
        cells[place * len(cells) // n].append(place)
    candidate = np.zeros(n)
    for cell in cells:
        filled = [place for place in cell if reference[place]]
        for place in filled:
            candidate[place] = inside[cell].sum() / len(filled)
    reference, candidate = reference / reference.sum(), candidate / candidate.sum()
    held = reference > 0
    if not candidate[held].all():
        return math.inf
    return float((reference[held] * np.log(reference[held] / candidate[held])).sum())


@pytest.mark.parametrize("name", ["sparse relu", "relu", "relu6"])
def test_entropy_of_one_side_is_the_least_that_the_pseudocode_gives(name):
    values = draw(name, n=20_000)
    made = histogram(values[values > 0])
    used = int(made.highest / made.width) + 1
    every = {end: divergence(made.counts, 0, end, 256) for end in range(used, 255, -4)}
    high = ranges(made, "entropy")[1]
    found = used if high == made.highest else round(high / made.width)
    assert divergence(made.counts, 0, found, 256) <= 1.02 * min(every.values())


def test_entropy_of_both_sides_is_no_worse_than_a_lattice_of_ranges():
    values = np.concatenate([draw("laplace", n=5_000), draw("shifted", n=5_000)])
    made = histogram(values)
    used = int(made.highest / made.width) - made.first + 1
    zero, kept = -made.first, 0.99 * made.count
    lattice = [
        divergence(made.counts, start, end, 256)
        for start in range(0, zero, 48)
        for end in range(used, zero, -48)
        if made.counts[start:end].sum() >= kept
    ]
    low, high = ranges(made, "entropy")
    start, end = math.floor(low / made.width) + zero, math.ceil(high / made.width) + zero
    assert len(lattice) > 20 and divergence(made.counts, start, end, 256) <= 1.02 * min(lattice)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [5.0, -5.0, 1e-45, 3e38])
def test_a_single_value_is_an_end_of_its_range(method, symmetric, value):
    value = float(np.float32(value))
    for n in (1, 1000):
        made = histogram([value] * n)
        low, high = ranges(made, method, symmetric=symmetric)
        assert (low if value < 0 else high) == pytest.approx(value, abs=made.width)
        assert (-low == high) if symmetric else (0.0 in (low, high))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_but_zeros_has_an_empty_range(method, symmetric):
    found = ranges(histogram([0.0, -0.0]), method, symmetric=symmetric)
    assert found == (0.0, 0.0)
    assert [math.copysign(1, end) for end in found] == [1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_two_values_far_apart_are_both_kept(method):
    made = histogram([-1.0, 3.0] * 50)
    assert ranges(made, method) == pytest.approx((-1.0, 3.0), abs=made.width)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="median"):
        ranges(histogram([1.0]), "median")
    with pytest.raises(ValueError, match="'tensor'"):
        ranges(histogram([]), "minmax")
