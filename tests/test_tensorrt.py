"""TensorRT: engines built ahead of time, the graph they start from, and the trtexec script."""

import json
import os
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from pydantic import ValidationError

import runtime
from exporters import tensorrt, tensorrt_rtx
from pipeline.errors import ExportError
from pipeline.records import Artifact
from runtime import onnx_runtime
from runtime.tensorrt import read_stamp
from tests.conftest import sources_of

rtx = pytest.mark.skipif(
    not tensorrt_rtx.availability().ok, reason=tensorrt_rtx.availability().detail
)
no_engine = pytest.mark.skipif(
    tensorrt._missing() is None, reason="TensorRT and a GPU are here: an engine is built instead"
)
FAKE = """#!/bin/sh
case "$1" in --help) echo "{help}"; exit 0;; esac
for argument in "$@"; do echo "$argument"; done
"""


@pytest.fixture
def build(sources, tmp_path):
    """Exports the file of one precision and returns its folder and what `export` said."""

    def build(exporter, precision, **settings):
        chosen = exporter.Settings(**settings, precisions=(precision,))
        (variant,) = exporter.variants(chosen)
        folder = tmp_path / "an export"
        folder.mkdir()
        return folder, exporter.export(sources, variant, chosen, folder)

    return build


# engines


def facts_in(folder):
    return json.loads((folder / "engine.json").read_text(encoding="utf-8"))


@rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rtx_engine_is_built_without_a_gpu(build, checkpoint, precision):
    folder, made = build(tensorrt_rtx, precision)
    assert made[:3] == ("model.engine", ("engine.json",), None)
    assert (folder / made.file).stat().st_size > checkpoint.params
    stamp = read_stamp(folder / made.file)
    assert stamp.library == "TensorRT for RTX" and stamp.version.startswith("1.")
    assert (stamp.gpu, stamp.compute_capabilities) == (None, ("8.9",))
    assert facts_in(folder)["batch"] == {"min": 1, "opt": 1, "max": 1}


@rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_facts_of_the_student_are_beside_the_engine(sources, checkpoint, tmp_path, output):
    source = sources.files["onnx fp32"].model_copy(update={"output": output})
    known = sources_of(checkpoint, files=[source])
    settings = tensorrt_rtx.Settings(precisions=("fp32",))
    tensorrt_rtx.export(known, tensorrt_rtx.variants(settings)[0], settings, tmp_path)
    facts = facts_in(tmp_path)
    assert facts["input"] == checkpoint.input.model_dump(mode="json")
    assert facts["labels"] == list(checkpoint.labels)
    assert (facts["student"], facts["arch"]) == (checkpoint.key, checkpoint.arch)
    assert (facts["output"], facts["licence"]) == (output, known.facts.licence)
    assert set(facts) >= set(known.facts.texts(output))


@rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rtx_engine_says_what_was_found_in_it(build, precision):
    folder, made = build(tensorrt_rtx, precision)
    network = facts_in(folder)["network"]
    assert network["takes"] == "uint8 [-1, 32, 32, 3]" and network["gives"] == "fp32 [-1, 5]"
    assert network["products"] == {precision: 53}, "every convolution and matrix product"
    where, graph, header, *size = made.notes
    assert where.endswith("for GPUs of compute capability 8.9, and nowhere else.")
    assert f"of the 53 convolutions and matrix products, 53 in {precision}." in graph
    assert "the file's own length" in header and "compute capability 8.9" in header
    assert bool(size) == (precision == "int8")


@rtx
@pytest.mark.tensorrt
def test_rtx_engine_of_half_is_smaller(sources, tmp_path):
    settings, sizes = tensorrt_rtx.Settings(precisions=("fp32", "fp16")), {}
    for variant in tensorrt_rtx.variants(settings):
        folder = tmp_path / variant.precision
        folder.mkdir()
        made = tensorrt_rtx.export(sources, variant, settings, folder)
        sizes[variant.precision] = (folder / made.file).stat().st_size
    assert sizes["fp16"] < 0.8 * sizes["fp32"]


@rtx
@pytest.mark.tensorrt
def test_rtx_engine_of_several_gpus_and_batch_sizes(build):
    gpus = ("8.0", "8.6", "8.9", "12.0", "12.1")
    folder, _ = build(
        tensorrt_rtx, "fp32", compute_capabilities=gpus, min_batch=1, opt_batch=4, max_batch=8
    )
    assert read_stamp(folder / "model.engine").compute_capabilities == gpus
    assert facts_in(folder)["batch"] == {"min": 1, "opt": 4, "max": 8}


@rtx
@pytest.mark.tensorrt
def test_what_the_parser_refuses_is_named(float_onnx, checkpoint, tmp_path):
    model = onnx.load(float_onnx.path)
    node = next(node for node in model.graph.node if node.op_type == "Clip")
    node.op_type, node.domain = "Squish", "example.org"
    model.opset_import.append(onnx.helper.make_opsetid("example.org", 1))
    onnx.save(model, tmp_path / "model.onnx")
    source = Artifact(format="onnx", precision="fp32", folder=tmp_path, file="model.onnx")
    settings, known = tensorrt_rtx.Settings(), sources_of(checkpoint, files=[source])
    with pytest.raises(ExportError, match=f"cannot read the graph: Squish `{node.name}`") as caught:
        tensorrt_rtx.export(known, tensorrt_rtx.variants(settings)[0], settings, tmp_path)
    assert "cudaError" not in str(caught.value)
    assert "[export.tensorrt_rtx]" in caught.value.remedy


@rtx
@pytest.mark.tensorrt
def test_what_the_builder_refuses_is_named(build):
    with pytest.raises(ExportError, match=r"cannot build the engine: .*Turing \(SM75\)"):
        build(tensorrt_rtx, "fp32", compute_capabilities=("7.5",))


@rtx
@pytest.mark.tensorrt
def test_a_refused_engine_leaves_no_trace_in_the_next(sources, tmp_path):
    engines = []
    for number, gpu in enumerate(("8.9", "7.5", "8.9")):
        settings = tensorrt_rtx.Settings(compute_capabilities=(gpu,))
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            tensorrt_rtx.export(sources, tensorrt_rtx.variants(settings)[0], settings, folder)
        except ExportError:
            assert gpu == "7.5"
        else:
            engines.append((folder / "model.engine").read_bytes())
    first, last = engines
    assert first == last


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(tensorrt._missing() is not None, reason=str(tensorrt._missing()))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engine_for_this_gpu(build, checkpoint, precision):
    folder, made = build(tensorrt, precision)
    assert made[:3] == ("model.engine", ("engine.json",), None)
    stamp = read_stamp(folder / made.file)
    assert stamp.library == "TensorRT" and stamp.version
    assert stamp.gpu and stamp.cuda_driver and len(stamp.compute_capabilities) == 1
    assert facts_in(folder)["labels"] == list(checkpoint.labels)


@pytest.mark.parametrize("exporter", [tensorrt, tensorrt_rtx])
def test_a_file_that_is_not_there_is_a_programming_error(exporter, checkpoint, tmp_path):
    settings = exporter.Settings()
    for variant in exporter.variants(settings):
        assert variant.platforms == ("nvidia",)
        with pytest.raises(TypeError, match="not among the files"):
            exporter.export(sources_of(checkpoint), variant, settings, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"compute_capabilities": ()}, "at least 1 item"),
        ({"compute_capabilities": ("9.0",)}, "8.9"),
        ({"compute_capabilities": ("8.9", "8.9")}, "twice"),
        ({"min_batch": 0}, "min_batch"),
        ({"min_batch": 2}, "min_batch <= opt_batch <= max_batch"),
        ({"opt_batch": 8, "max_batch": 4}, "min_batch <= opt_batch <= max_batch"),
    ],
)
def test_settings_are_checked(wrong, words):
    with pytest.raises(ValidationError, match=words):
        tensorrt_rtx.Settings(**wrong)


# the graph


@pytest.mark.parametrize("title", ["onnx fp32", "onnx fp16", "onnx int8 (symmetric)"])
def test_prepared_graph_casts_first_and_answers_the_same(sources, title):
    model = tensorrt.prepare(sources.files[title])
    onnx.checker.check_model(model, full_check=True)
    readers = [node.op_type for node in model.graph.node if "image" in node.input]
    assert readers == ["Cast"]
    assert {prop.key for prop in model.metadata_props} >= {"labels", "input", "student", "arch"}
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    before, after = (
        ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
            None, {"image": images}
        )[0]
        for content in (sources.files[title].path.read_bytes(), model.SerializeToString())
    )
    np.testing.assert_array_equal(before, after)


def test_prepared_half_graph_has_no_other_float_but_the_logits(sources):
    graph = tensorrt.prepare(sources.files["onnx fp16"]).graph
    casts = [node for node in graph.node if node.op_type == "Cast"]
    kinds = {onnx.helper.get_node_attr_value(node, "to") for node in casts[:-1]}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert list(casts[-1].output) == [graph.output[0].name]


def test_symmetric_graph_is_what_tensorrt_asks_for(sources):
    """int8 with zero point 0 on both sides of every Q/DQ; no int32 biases."""
    model = tensorrt.prepare(sources.files["onnx int8 (symmetric)"])
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    kinds = ("QuantizeLinear", "DequantizeLinear")
    pairs = [node for node in model.graph.node if node.op_type in kinds]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()


# the script


@no_engine
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graph_that_is_left_answers_as_its_source_does(build, sources, precision):
    """What is measured where no engine can be built: the graph, in the runtime for it."""
    folder, made = build(tensorrt, precision, max_batch=4)
    assert runtime.for_file("tensorrt", made.file) == "onnx_runtime"
    source = "onnx int8 (symmetric)" if precision == "int8" else f"onnx {precision}"
    before, after = (
        onnx_runtime.open(path, threads=1)
        for path in (sources.files[source].path, folder / made.file)
    )
    for n in (1, 2, 5):
        images = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.testing.assert_array_equal(before.run(images), after.run(images))


@no_engine
def test_without_an_engine_the_graph_and_a_script_are_left(build):
    folder, made = build(tensorrt, "fp32")
    assert (made.file, made.extras) == ("model.onnx", ("build_engine.sh",))
    assert made.skipped.startswith("no engine, because ")
    assert ("not installed" in made.skipped) or ("no NVIDIA GPU" in made.skipped)
    assert os.access(folder / "build_engine.sh", os.X_OK)
    found = tensorrt.availability()
    assert found.ok and found.detail.startswith("graph and trtexec script only: ")


@pytest.fixture
def script(build):
    if tensorrt._missing() is None:
        pytest.skip("TensorRT and a GPU are here: an engine is built instead")
    folder, _ = build(tensorrt, "fp32", opt_batch=2, max_batch=4)
    return folder / "build_engine.sh"


def run(script, path, *arguments, cwd="/"):
    return subprocess.run(
        [str(script), *arguments],
        env={"PATH": path},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def with_trtexec(folder, help_text):
    folder.mkdir()
    fake = folder / "trtexec"
    fake.write_text(FAKE.format(help=help_text), encoding="utf-8")
    fake.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_script_is_plain_sh(script):
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")


def test_script_says_that_trtexec_is_missing(script):
    done = run(script, "/usr/bin:/bin")
    assert done.returncode == 127
    assert "trtexec is not on PATH" in done.stderr
    assert "Add that folder to PATH" in done.stderr


@pytest.mark.parametrize(
    ("help_text", "typed"),
    [("--onnx=<file> --stronglyTyped", ["--stronglyTyped"]), ("--onnx=<file>", [])],
    ids=["TensorRT 10", "without the flag"],
)
def test_script_calls_trtexec(script, tmp_path, help_text, typed):
    path = with_trtexec(tmp_path / "some bin", help_text)
    done = run(script, path, "--verbose")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"--onnx={script.parent}/model.onnx",
        f"--saveEngine={script.parent}/model.engine",
        "--skipInference",
        "--minShapes=image:1x32x32x3",
        "--optShapes=image:2x32x32x3",
        "--maxShapes=image:4x32x32x3",
        *typed,
        "--verbose",
    ]


def test_script_finds_its_graph_from_any_folder(script, tmp_path):
    path = with_trtexec(tmp_path / "bin", "")
    for name, folder in (("./build_engine.sh", script.parent), (script, "/")):
        done = run(name, path, cwd=folder)
        assert done.stdout.startswith(f"--onnx={script.parent}/model.onnx\n"), done.stderr


def test_script_passes_on_that_trtexec_failed(script, tmp_path):
    path = with_trtexec(tmp_path / "bin", "")
    (tmp_path / "bin" / "trtexec").write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    assert run(script, path).returncode == 3
