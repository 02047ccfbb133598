"""What every format must keep to; a new file in exporters/ is covered without an edit here.

At the end, what ONNX in float16 keeps to besides.
"""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

import exporters
from exporters import Exporter, Variant
from pipeline.errors import ExportError
from pipeline.records import Artifact, Precision
from pipeline.settings import Settings
from pipeline.store import file_sha256
from runtime import Availability, onnx_runtime
from tests.pictures import CLASSES, picture

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorflow"),
    *("coremltools", "tensorrt", "tensorrt_rtx", "litert_torch", "ai_edge_litert", "executorch"),
}
FILES = [
    pytest.param(name, variant, id=f"{name}-{variant.precision}-{variant.variant or 'plain'}")
    for name in exporters.names()
    for variant in exporters.load(name).variants(exporters.load(name).Settings())
]


@pytest.fixture(params=exporters.names())
def exporter(request):
    return exporters.load(request.param)


def test_protocol(exporter):
    expected = {*Exporter.__annotations__, "availability", "variants", "export"}
    assert expected <= set(dir(exporter))
    assert isinstance(exporter.VERSION, int)
    assert exporter.PACKAGES and not isinstance(exporter.PACKAGES, str)
    assert exporter.EXTRA is None or exporter.EXTRA in extras()
    assert isinstance(exporter.EXECUTED, str)
    assert issubclass(exporter.Settings, Settings)


def extras():
    import tomllib

    facts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return facts["project"]["optional-dependencies"]


def test_settings_refuse_unknown_keys_and_explain_every_key(exporter):
    with pytest.raises(ValidationError, match="no_such_key"):
        exporter.Settings(no_such_key=1)
    for name, field in exporter.Settings.model_fields.items():
        assert field.description, f"{name} has no docstring"


def test_availability_is_said_in_words(exporter):
    found = exporter.availability()
    assert isinstance(found, Availability)
    assert found.detail


def test_variants_are_told_apart_and_name_a_source(exporter, sources):
    files = exporter.variants(exporter.Settings())
    assert files
    assert len({(file.precision, file.variant) for file in files}) == len(files)
    for file in files:
        assert file.precision in get_args(Precision)
        assert file.source in sources


@pytest.mark.parametrize("name", exporters.names())
def test_asking_a_format_imports_nothing_heavy(name):
    code = f"""
import sys, exporters
exporter = exporters.load({name!r})
exporter.availability()
exporter.variants(exporter.Settings())
print(*({HEAVY} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""
    assert run.stderr == ""


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_exports_the_same_bytes_twice(name, variant, sources, tmp_path):
    exporter = exporters.load(name)
    available = exporter.availability()
    if not available.ok:
        pytest.skip(available.detail)
    once, again = tmp_path / "once", tmp_path / "again"
    made = check_export(exporter, variant, sources, again)
    blank = Artifact(format=name, precision=variant.precision, variant=variant.variant)
    if (first := sources.get(blank.title)) is not None:  # a file that the fixtures have made
        once = first.folder
    else:
        check_export(exporter, variant, sources, once)
    if reason := varies(exporter, made.file):
        pytest.skip(reason)
    assert contents(once) == contents(again)


def check_export(exporter, variant, sources, folder):
    folder.mkdir()
    made = exporter.export(sources[variant.source], variant, exporter.Settings(), folder)
    assert {made.file, *made.extras} == {path.name for path in folder.iterdir()}
    assert made.skipped is None or made.skipped.strip()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert content
        assert str(folder).encode() not in content
        assert str(ROOT).encode() not in content
    return made


def contents(folder):
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def varies(exporter, file):
    """The reason an exporter states for files that differ each time, in its attribute VARIES."""
    return getattr(exporter, "VARIES", {}).get(file)


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_a_wrong_source_is_a_programming_error(name, variant, sources, tmp_path):
    exporter = exporters.load(name)
    available = exporter.availability()
    if not available.ok:
        pytest.skip(available.detail)
    other = sources["onnx fp32" if variant.source in ("checkpoint", "quantized") else "checkpoint"]
    with pytest.raises(TypeError):
        exporter.export(other, variant, exporter.Settings(), tmp_path)


# ONNX in float16


def test_half_comes_after_the_file_it_is_made_of():
    exporter = exporters.load("onnx")
    offered = exporter.variants(exporter.Settings())
    assert [v.precision for v in offered] == ["fp32", "fp16", "int8", "int8"]
    without = exporter.variants(exporter.Settings.model_validate({"precisions": ("fp32", "int8")}))
    assert "fp16" not in {v.precision for v in without}


@pytest.fixture(scope="module")
def images():
    """Grey pictures of 32 px, of three kinds."""
    rng = np.random.default_rng(2)
    return np.stack([picture(CLASSES[i % 3], rng, 32) for i in range(120)])[..., None]


@pytest.fixture(scope="module")
def halved(make_checkpoint, images, tmp_path_factory):
    """A student whose answers depend on the image, though untrained; its fp32 and fp16 files."""
    import torch

    import models

    checkpoint = make_checkpoint("mobilenet_v3_small", channels=1)
    student = models.load(checkpoint)
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        student.train()(torch.from_numpy(images))  # so that no signal dies away
        next(p for p in reversed(list(student.parameters())) if p.ndim == 2).mul_(50)
    torch.save(student.network.state_dict(), checkpoint.weights_path)
    full = write_onnx(checkpoint, "fp32", tmp_path_factory.mktemp("fp32"))
    return checkpoint, full, write_onnx(full, "fp16", tmp_path_factory.mktemp("fp16"))


def write_onnx(source, precision, folder):
    exporter = exporters.load("onnx")
    made = exporter.export(source, Variant(precision), exporter.Settings(), folder)
    return Artifact(format="onnx", precision=precision, folder=folder, file=made.file)


def test_half_answers_like_the_student(halved, images):
    import torch

    import models

    checkpoint, _, half = halved
    with torch.inference_mode():
        expected = models.load(checkpoint)(torch.from_numpy(images)).numpy()
    logits = onnx_runtime.open(half.path, threads=1).run(images)
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    spread, middle = expected.std(0), expected.mean(0)
    assert (np.sqrt(((logits - expected) ** 2).mean(0)) < 0.03 * spread).all()
    # Of an untrained student one class wins nearly always; beside its mean, each does now and then.
    named, right = (logits - middle).argmax(1), (expected - middle).argmax(1)
    assert len(set(right)) == len(middle) and (named == right).mean() > 0.98
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.98


def test_half_has_no_other_float_but_the_logits(halved):
    import onnx

    _, full, half = halved
    before, after = onnx.load(full.path), onnx.load(half.path)
    onnx.checker.check_model(after, full_check=True)
    kinds = onnx.TensorProto
    assert {kinds.FLOAT16, kinds.INT64} == {t.data_type for t in after.graph.initializer}
    values = onnx.shape_inference.infer_shapes(after, strict_mode=True).graph.value_info
    assert kinds.FLOAT not in {value.type.tensor_type.elem_type for value in values}
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    assert after.metadata_props == before.metadata_props
    assert after.producer_name == before.producer_name
    assert half.path.stat().st_size < 0.6 * full.path.stat().st_size


def test_a_weight_beyond_half_is_named(sources, tmp_path):
    import onnx

    model = onnx.load(sources["onnx fp32"].path)
    weight = next(t for t in model.graph.initializer if t.name.endswith("weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = -7e4
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    source = Artifact(format="onnx", precision="fp32", folder=tmp_path, file="model.onnx")
    with pytest.raises(ExportError, match=f"65504, and `{weight.name}` reaches 70000") as caught:
        write_onnx(source, "fp16", tmp_path)
    assert "export.onnx.precisions" in caught.value.remedy


def test_short_names_change_no_answer_and_layers_keep_theirs(quantized, tmp_path):
    import onnx

    from exporters.onnx import compact

    before = onnx.load(quantized.folder / quantized.int8)
    after = compact(onnx.load(quantized.folder / quantized.int8))
    onnx.save(after, tmp_path / "short.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    paths = (quantized.folder / quantized.int8, tmp_path / "short.onnx")
    long, short = (onnx_runtime.open(path, 1).run(pixels) for path in paths)
    assert np.array_equal(long, short) and after.ByteSize() < 0.95 * before.ByteSize()
    named = [[n.name for n in m.graph.node if n.op_type == "Conv"] for m in (before, after)]
    assert named[0] == named[1] and "features.0.0" in named[1]
