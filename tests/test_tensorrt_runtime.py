"""Opening engines: whether one fits is found out before TensorRT sees it, in words."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from exporters import tensorrt as exporter
from exporters import tensorrt_rtx as rtx_exporter
from pipeline.errors import CannotRunHereError, ExportError, NotInstalledError
from pipeline.machine import cuda_devices
from runtime import onnx_runtime, tensorrt, tensorrt_rtx
from runtime.tensorrt import Stamp, check_stamp, read_stamp

ROOT = Path(__file__).parents[1]
L4 = Stamp(
    library="TensorRT",
    version="10.8.0.43",
    gpu="NVIDIA L4",
    compute_capabilities=("8.9",),
    cuda_driver="12.8",
)
RTX = Stamp(library="TensorRT for RTX", version="1.7.1.116", compute_capabilities=("8.6", "8.9"))
RTX_HERE = RTX.model_copy(
    update={"gpu": "NVIDIA GeForce RTX 4070", "compute_capabilities": ("8.9",)}
)
rtx = pytest.mark.skipif(
    not rtx_exporter.availability().ok, reason=rtx_exporter.availability().detail
)
no_gpu = pytest.mark.skipif(cuda_devices() > 0, reason="a GPU is here")


# stamps


@pytest.mark.parametrize(
    ("stamp", "here"),
    [
        (L4, L4),
        (L4, L4.model_copy(update={"cuda_driver": "13.0"})),
        (L4.model_copy(update={"compute_capabilities": ()}), L4),
        (RTX, RTX_HERE),
    ],
    ids=["the same", "newer driver", "capability unknown", "any GPU of a kind"],
)
def test_an_engine_that_fits(stamp, here):
    check_stamp(stamp, here)


@pytest.mark.parametrize(
    ("stamp", "other", "words"),
    [
        (L4, {"version": "11.0.0.1"}, "TensorRT 11.0.0.1 for the NVIDIA L4"),
        (L4, {"version": "10.8.0.44"}, "here is TensorRT 10.8.0.44"),
        (L4, {"gpu": "NVIDIA L40S"}, "for the NVIDIA L40S of compute capability 8.9"),
        (L4, {"compute_capabilities": ("9.0",)}, "of compute capability 9.0"),
        (L4, {"library": "TensorRT for RTX"}, "here is TensorRT for RTX 10.8.0.43"),
    ],
    ids=["version", "build", "GPU", "capability", "library"],
)
def test_an_engine_that_does_not_fit(stamp, other, words):
    with pytest.raises(CannotRunHereError) as caught:
        check_stamp(stamp, L4.model_copy(update=other))
    message = caught.value.message
    assert message.startswith(
        "this engine was built with TensorRT 10.8.0.43 for the NVIDIA L4 of compute capability "
        "8.9; here is "
    )
    assert words in message
    assert caught.value.remedy == "Build it again here: python -m pipeline run."


def test_an_rtx_engine_for_other_gpus_names_the_key():
    here = RTX_HERE.model_copy(update={"compute_capabilities": ("12.0",)})
    with pytest.raises(CannotRunHereError, match=r"for GPUs of compute capability 8\.6 or 8\.9; "):
        check_stamp(RTX, here)
    with pytest.raises(CannotRunHereError, match=r'"12\.0" in export\.tensorrt_rtx\.compute_cap'):
        check_stamp(RTX, here)


# files


@pytest.fixture
def engine(tmp_path):
    """A file with the stamp of an engine; no library is to see it."""
    path = tmp_path / "model.engine"
    path.write_bytes(b"x" * 1000)
    facts = {"built": L4.model_dump(mode="json"), "bytes": 1000, "labels": ["a"]}
    path.with_name("engine.json").write_text(json.dumps(facts), encoding="utf-8")
    return path


def test_the_stamp_is_read(engine):
    assert read_stamp(engine) == L4


@pytest.mark.parametrize("runtime", [tensorrt, tensorrt_rtx])
def test_an_engine_that_was_cut_off(engine, runtime):
    engine.write_bytes(b"x" * 999)
    with pytest.raises(ExportError, match=r"should have 1,000 bytes .* it has 999") as caught:
        runtime.open(engine, threads=1)
    assert "again" in caught.value.remedy


def test_an_engine_that_is_missing(engine):
    engine.unlink()
    with pytest.raises(ExportError, match=r"should have 1,000 bytes .* it is missing"):
        tensorrt.open(engine, threads=1)


@pytest.mark.parametrize("runtime", [tensorrt, tensorrt_rtx])
def test_an_engine_alone(engine, runtime):
    engine.with_name("engine.json").unlink()
    with pytest.raises(ExportError, match=r"beside .*model.engine there is no engine\.json"):
        runtime.open(engine, threads=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"built": {"libr',
        "[]",
        "null",
        '{"bytes": 1000}',
        '{"built": {}, "bytes": 1000}',
        json.dumps({"built": L4.model_dump(mode="json")}),
        json.dumps({"built": L4.model_dump(mode="json"), "bytes": None}),
        "\udcff",
    ],
)
def test_a_damaged_engine_json(engine, text):
    content = text.encode("utf-8", "surrogateescape")
    engine.with_name("engine.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"engine\.json cannot be read: \S"):
        tensorrt.open(engine, threads=1)


@rtx
@pytest.mark.tensorrt
def test_metadata_are_the_texts_of_the_other_formats(rtx_engine, sources):
    texts = tensorrt_rtx.read_metadata(rtx_engine)
    assert texts == sources.facts.texts("logits")
    rtx_engine.with_name("engine.json").write_text('{"labels": []}', encoding="utf-8")
    with pytest.raises(ExportError, match=r"engine\.json cannot be read: 'input'"):
        tensorrt_rtx.read_metadata(rtx_engine)


# availability


@pytest.mark.skipif(
    not tensorrt.availability().detail.endswith("not installed"), reason="tensorrt is installed"
)
def test_without_tensorrt_the_extra_is_named(engine):
    assert "tensorrt" in tensorrt.availability().remedy
    with pytest.raises(NotInstalledError, match=r"\.\[tensorrt\]"):
        tensorrt.open(engine, threads=1)


@rtx
@no_gpu
@pytest.mark.tensorrt
def test_without_a_gpu_that_is_the_reason(rtx_engine):
    assert tensorrt_rtx.availability() == (False, "there is no NVIDIA GPU", "")
    with pytest.raises(CannotRunHereError, match="cannot be run: there is no NVIDIA GPU"):
        tensorrt_rtx.open(rtx_engine, threads=1)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_asking_imports_nothing_heavy(name):
    code = f"""
import sys, runtime
runtime.load({name!r}).availability()
print(*({{"torch", "tensorrt", "tensorrt_rtx", "onnx"}} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "" and run.stderr == ""


# what is in an engine of TensorRT for RTX


@pytest.fixture(scope="module")
def rtx_made(sources, tmp_path_factory):
    """Engines of two kinds of GPU, by precision."""
    settings, paths = rtx_exporter.Settings(compute_capabilities=("8.6", "12.0")), {}
    for variant in rtx_exporter.variants(settings):
        folder = tmp_path_factory.mktemp(variant.precision)
        made = rtx_exporter.export(sources, variant, settings, folder)
        paths[variant.precision] = folder / made.file
    return paths


@pytest.fixture
def rtx_engine(rtx_made, tmp_path):
    """A copy of one that may be spoilt."""
    path = tmp_path / "model.engine"
    for each in (rtx_made["fp32"], rtx_made["fp32"].with_name("engine.json")):
        (tmp_path / each.name).write_bytes(each.read_bytes())
    return path


@rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_is_read_without_a_gpu(rtx_made, sources, precision):
    import onnx

    path = rtx_made[precision]
    found = tensorrt_rtx.inspect(path)
    header = found.header
    assert header is not None, "a new version lays its header out otherwise"
    assert header.version == read_stamp(path).version
    assert header.compute_capabilities == ("8.6", "12.0")
    assert header.program_bytes + header.weight_bytes <= found.bytes == path.stat().st_size
    title = "onnx int8 (symmetric)" if precision == "int8" else f"onnx {precision}"
    graph = onnx.load(sources.files[title].path).graph
    weights = [onnx.numpy_helper.to_array(each) for each in graph.initializer]
    assert header.weight_bytes >= sum(each.nbytes for each in weights if each.ndim > 1)
    assert f"{header.weight_bytes:,} are weights" in found.line


@rtx
@pytest.mark.tensorrt
def test_int8_is_large_for_its_kernels_not_for_its_weights(rtx_made):
    """When a new version ends that, the note about it has to go."""
    full, small = (tensorrt_rtx.inspect(rtx_made[each]).header for each in ("fp32", "int8"))
    assert full is not None and small is not None
    assert small.weight_bytes < 0.6 * full.weight_bytes
    assert small.program_bytes > 10 * full.program_bytes
    assert small.program_bytes > 100_000 * small.kernels > 100_000 * 40


@rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("left", [0, 10, 64, 111, 5000, -1])
def test_an_engine_cut_off_is_found_by_its_header(rtx_engine, left):
    rtx_engine.write_bytes(rtx_engine.read_bytes()[:left])
    with pytest.raises(ExportError, match=r"no engine of TensorRT for RTX|by its header should"):
        tensorrt_rtx.inspect(rtx_engine)


@rtx
@pytest.mark.tensorrt
def test_another_file_is_no_engine(rtx_engine):
    rtx_engine.write_bytes(b"an image, say" * 100)
    with pytest.raises(ExportError, match="is no engine of TensorRT for RTX"):
        tensorrt_rtx.inspect(rtx_engine)


@rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize("place", [28, 64, 88], ids=["magic", "program", "weights"])
def test_a_header_that_is_not_known_is_not_guessed_at(rtx_engine, place):
    content = bytearray(rtx_engine.read_bytes())
    content[place] ^= 0xFF
    rtx_engine.write_bytes(content)
    try:
        found = tensorrt_rtx.inspect(rtx_engine)
    except ExportError as error:  # the library may know that it is damaged
        assert "is no engine" in error.message
    else:
        assert found.header is None and "in an unknown way" in found.line


# on a GPU


def on_gpu(runtime):
    """Marks of a test that runs engines of `runtime`."""
    found = runtime.availability()
    return [
        pytest.mark.gpu,
        pytest.mark.tensorrt,
        pytest.mark.skipif(not found.ok, reason=f"{runtime.FORMATS[0]}: {found.detail}"),
    ]


@pytest.mark.parametrize(
    ("made_by", "runtime"),
    [
        pytest.param(exporter, tensorrt, marks=on_gpu(tensorrt), id="tensorrt"),
        pytest.param(rtx_exporter, tensorrt_rtx, marks=on_gpu(tensorrt_rtx), id="tensorrt_rtx"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_answers_as_its_graph_does(made_by, runtime, sources, precision, tmp_path):
    keys = {"precisions": (precision,), "min_batch": 2, "opt_batch": 4, "max_batch": 4}
    if runtime is tensorrt_rtx:
        here = tensorrt.stamp_of(tensorrt_rtx.LIBRARY).compute_capabilities
        keys["compute_capabilities"] = here
    settings = made_by.Settings(**keys)
    (variant,) = made_by.variants(settings)
    made = made_by.export(sources, variant, settings, tmp_path)
    session = runtime.open(tmp_path / made.file, threads=1)
    reference = onnx_runtime.open(sources.file(variant).path, threads=1)
    for n in (1, 2, 4, 11):
        images = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        expected, found = reference.run(images), session.run(images)
        assert found.dtype == np.float32 and found.shape == expected.shape
        limit = {"fp32": 0.001, "fp16": 0.03, "int8": 0.5}[precision]
        assert np.abs(found - expected).mean() < limit * expected.std()
    assert session.name.startswith(f"{runtime.FORMATS[0].split('_')[0]} ")
    with pytest.raises(ValueError, match="takes uint8"):
        session.run(np.zeros((1, 32, 32, 1), np.uint8))
