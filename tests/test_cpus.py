"""The same int8 file on other CPUs: a graph whose sums overflow where there is no VNNI."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx import INPUT, OUTPUT
from pipeline import emulators
from pipeline.quantization import cpus, graph
from pipeline.quantization.judge import Judge
from pipeline.quantization.place import place
from pipeline.quantized import REMEDIES
from pipeline.records import CpuCheck
from runtime import onnx_runtime
from tests.test_emulators import fetched, on_x86_linux  # noqa: F401

SIDE, CHANNELS = 4, 8
PRODUCTS = SIDE * SIDE * CHANNELS


def check(right=900, n=1000, differs=0.0, of=900):
    return CpuCheck(cpu="arm64", n=n, top1=right / n, host_top1=of / n, differs=differs)


UNKNOWN = CpuCheck(cpu="haswell", skipped="no emulator")


def test_cpus_are_the_same_within_a_fifth_of_a_point():
    assert cpus.same([check(), check(right=898), check(right=902)])
    assert not cpus.same([check(), check(right=897)])
    assert not cpus.same([check(right=903)])


def test_one_image_of_few_is_no_difference():
    assert cpus.same([check(right=89, n=100, of=90)])
    assert not cpus.same([check(right=88, n=100, of=90)])


def test_differences_that_cancel_out_are_differences():
    assert cpus.same([check(differs=0.02)]) and not cpus.same([check(differs=0.021)])


def test_cpus_that_were_not_run_are_no_evidence_against():
    assert cpus.same([]) and cpus.same([UNKNOWN]) and cpus.same([UNKNOWN, check()])
    assert not cpus.same([UNKNOWN, check(right=500)])


class Full:
    """A graph whose exact answer is one class, and whose saturated one another.

    Its first logit is the mean of the pixels, by weights that are all as large as int8 can be; its
    second is 0.6, whatever the pixels. Where pairs of products of 8 bits are added in 16, they are
    cut to half of what they are for bright images: 32767 / (2 · 255 · 127).
    """

    def __init__(self):
        make = helper.make_node
        nodes = [
            make("Transpose", [INPUT], [graph.UINT8_PIXELS], "t", perm=[0, 3, 1, 2]),
            make("Cast", [graph.UINT8_PIXELS], [graph.FLOAT_PIXELS], "c", to=TensorProto.FLOAT),
            make("Sub", [graph.FLOAT_PIXELS, "zero"], [graph.SHIFTED_PIXELS], "s"),
            make("Mul", [graph.SHIFTED_PIXELS, "scale"], [graph.PIXELS], "m"),
            make("Conv", [graph.PIXELS, "weight", "bias"], ["means"], "conv"),
            make("Flatten", ["means"], [OUTPUT], "flat"),
        ]
        weight = np.full((2, CHANNELS, SIDE, SIDE), 1 / PRODUCTS, np.float32)
        weight[1] *= np.where(np.arange(PRODUCTS) % 2, 0.01, -0.01).reshape(weight[1].shape)
        self.front = graph.Front(scale=float(np.float32(1 / 255)), zero_point=0)
        constants = {
            "zero": np.float32(0),
            "scale": np.float32(self.front.scale),
            "weight": weight,
            "bias": np.array([0, 0.6], np.float32),
        }
        image = helper.make_tensor_value_info(
            INPUT, TensorProto.UINT8, ["batch", SIDE, SIDE, CHANNELS]
        )
        logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 2])
        stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
        made = helper.make_graph(nodes, "full", [image], [logits], stored)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 9
        self.ready = onnx.shape_inference.infer_shapes(model)
        rng = np.random.default_rng(0)
        bright = rng.integers(200, 256, (20, SIDE, SIDE, CHANNELS), dtype=np.uint8)
        dark = rng.integers(0, 56, bright.shape, dtype=np.uint8)
        self.images = np.concatenate([bright, dark])
        self.labels = np.repeat(np.array([0, 1], np.int64), 20)
        self.placed_as = []

    def placed(self, scheme):
        self.placed_as.append(scheme)
        ranges = {"means": (0.0, 1.0), OUTPUT: (0.0, 1.0)}
        return place(self.ready, self.front, ranges, scheme).model

    def compared(self, scheme, folder):
        path = folder / f"{scheme}.onnx"
        onnx.save(self.placed(scheme), path)
        here = onnx_runtime.open(path, 1).run(self.images)
        assert (here.argmax(1) == self.labels).all()
        return cpus.compare(path, self.images, self.labels, here, 1, scheme)


class Timed(Judge):
    """Knows how fast graphs are: the first the slowest."""

    def __init__(self) -> None:
        self.threads = 1

    def interleaved_ms(self, graphs: Sequence[onnx.ModelProto]) -> list[float]:
        return [float(len(graphs) - place) for place in range(len(graphs))]


@pytest.fixture
def full():
    return Full()


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine on which nothing was fetched."""
    monkeypatch.setenv(emulators.CACHE, str(tmp_path / "cache"))


@on_x86_linux
def test_without_emulators_each_check_says_why_and_what_to_do(bare, full, tmp_path):
    found = full.compared("u8s8", tmp_path)
    assert [each.cpu for each in found] == ["haswell", "arm64"] == list(cpus.OTHERS)
    for each in found:
        assert each.scheme == "u8s8" and each.n == 0 and each.apart is each.differs is None
        assert each.skipped is not None and "not fetched into" in each.skipped
        assert emulators.COMMAND in each.skipped
    assert cpus.there() == dict.fromkeys(cpus.OTHERS)


@on_x86_linux
def test_without_emulators_the_first_scheme_stays(bare, full):
    scheme, checks = cpus.choose(full.placed, "u8s8", Timed(), full.images, full.labels)
    assert scheme == "u8s8" and len(checks) == 2
    assert full.placed_as == ["u8s8"]  # nothing else is even made


@pytest.mark.arm64
@pytest.mark.usefixtures("fetched")
def test_sums_that_overflow_are_found_and_remedied(full):
    scheme, checks = cpus.choose(full.placed, "u8s8", Timed(), full.images, full.labels)
    trap, arm, *others = checks
    assert "Haswell" in trap.cpu and "arm64" in arm.cpu
    assert trap.scheme == arm.scheme == "u8s8"
    assert trap.n == arm.n == 40 and trap.host_top1 == arm.host_top1 == 1.0
    # All bright images, and no dark one.
    assert (trap.top1, trap.differs, trap.apart) == (0.5, 0.5, 50)
    assert (arm.top1, arm.differs, arm.apart) == (1.0, 0.0, 0)
    # Others were tried, the fastest first, until one was the same.
    tried = [each.scheme for each in others[::2]]
    assert tried == [each.scheme for each in others[1::2]]
    assert tried == [name for name in REMEDIES[::-1] if name in tried]
    assert [cpus.same(others[i : i + 2]) for i in range(0, len(others), 2)] == [
        name == scheme for name in tried
    ]
    assert tried[-1] == scheme != "u8s8"


@pytest.mark.arm64
@pytest.mark.usefixtures("fetched")
@pytest.mark.parametrize("scheme", ["u8u8", "u8s8-reduced"])
def test_the_remedies_do_not_overflow(full, tmp_path, scheme):
    found = full.compared(scheme, tmp_path)
    assert [(each.top1, each.differs) for each in found] == [(1.0, 0.0)] * 2
    assert cpus.same(found) and {each.scheme for each in found} == {scheme}


@pytest.mark.arm64
@pytest.mark.usefixtures("fetched")
def test_signed_activations_are_none(full, tmp_path):
    """ONNX Runtime shifts them to unsigned ones on x86."""
    trap, arm = full.compared("s8s8", tmp_path)
    assert (trap.differs, arm.differs) == (0.5, 0.0)


@pytest.mark.arm64
@pytest.mark.usefixtures("fetched")
def test_a_file_that_fails_there_is_no_verdict(full, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    here = np.zeros((len(full.images), 2), np.float32)
    found = cpus.compare(path, full.images, full.labels, here, 1)
    assert all(each.skipped and "gave no answer" in each.skipped for each in found)
    assert cpus.same(found)
