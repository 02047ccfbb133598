"""What every format must keep to; a new file in exporters/ is covered without an edit here.

At the end, what ONNX in float16 keeps to besides.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

import exporters
import runtime
from exporters import Exporter, Sources, Variant
from pipeline import contract
from pipeline.errors import ExportError, NotNeededError
from pipeline.records import Artifact, Platform, Precision
from pipeline.store import file_sha256
from runtime import Availability, onnx_runtime
from tests.conftest import (
    enliven,
    export_onnx,
    make_quantized,
    make_ready,
    make_sources,
    sources_of,
)
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


@pytest.fixture(scope="module")
def sources(make_checkpoint, tmp_path_factory):
    """Those of a network with few layers: some converters take a second for each."""
    short = make_checkpoint("resnet8_cifar")
    full = export_onnx(sources_of(short), Variant("fp32"), tmp_path_factory.mktemp("onnx"))
    graphs = make_quantized(short, make_ready(short), tmp_path_factory.mktemp("quantized"))
    return make_sources(short, full, graphs, tmp_path_factory)


@pytest.fixture(params=exporters.names())
def exporter(request):
    return exporters.load(request.param)


def test_protocol(exporter):
    expected = {*Exporter.__annotations__, "availability", "variants", "export"}
    assert expected <= set(dir(exporter))
    assert isinstance(exporter.VERSION, int)
    assert exporter.PACKAGES and not isinstance(exporter.PACKAGES, str)
    assert exporter.EXTRA is None or exporter.EXTRA in extras()
    assert isinstance(exporter.ISOLATED, bool)
    assert issubclass(exporter.Settings, exporters.FormatSettings)


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
        assert file.platforms and set(file.platforms) <= set(get_args(Platform))
        assert sources.of(file) is not None


@pytest.mark.parametrize("name", exporters.names())
def test_a_runtime_is_there_for_every_format(name):
    executes = runtime.for_file(name, "model.other")
    assert executes is not None
    found = runtime.load(executes)
    assert isinstance(found.TIMED, bool) and isinstance(found.CAVEAT, str)


def test_a_tolerance_follows_from_the_precision_unless_it_is_set(exporter):
    usual = exporter.Settings()
    for file in exporter.variants(usual):
        assert usual.tolerance(file.precision) == exporters.TOLERANCES[file.precision]
    own = exporter.Settings(max_drop=0.5)
    usual_difference = exporters.TOLERANCES["int8"].difference
    assert own.tolerance("int8") == exporters.Tolerance(usual_difference, 0.5)


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


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    """Makes a file with the default settings, once, and remembers it."""
    known = {}

    def make(name, variant):
        if (name, variant) not in known:
            available = exporters.load(name).availability()
            if not available.ok:
                pytest.skip(available.detail)
            folder = tmp_path_factory.mktemp("with a space") / "file"
            known[name, variant] = folder, export_into(folder, name, variant, sources)
        folder, found = known[name, variant]
        if found is None:
            pytest.skip("this network needs no such file")
        return folder, found

    return make


def export_into(folder, name, variant, sources):
    """What an exporter left in the new `folder`, after a look; None where no file is needed."""
    folder.mkdir()
    exporter = exporters.load(name)
    try:
        made = exporter.export(sources, variant, exporter.Settings(), folder)
    except NotNeededError:
        return None
    assert {made.file, *made.extras} == {path.name for path in folder.iterdir()}
    assert made.skipped is None or made.skipped.strip()
    assert all(note.strip() for note in made.notes)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert content
        assert str(folder).encode() not in content
        assert str(ROOT).encode() not in content
    return made


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_exports_the_same_bytes_twice(name, variant, made, sources, tmp_path):
    folder, found = made(name, variant)
    if reason := varies(exporters.load(name), found.file):
        pytest.skip(reason)
    export_into(tmp_path / "again", name, variant, sources)
    assert contents(folder) == contents(tmp_path / "again")


def contents(folder):
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def varies(exporter, file):
    """The reason an exporter states for files that differ each time, in its attribute VARIES."""
    return getattr(exporter, "VARIES", {}).get(file)


def executed(name, file):
    """The runtime module for a file; skips where it does not run here."""
    executes = runtime.for_file(name, file)
    assert executes is not None
    module = runtime.load(executes)
    available = module.availability()
    if not available.ok:
        pytest.skip(available.detail)
    return module


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_takes_the_phones_images_and_answers_as_the_student(name, variant, made, sources):
    import torch

    import models

    folder, found = made(name, variant)
    pixels = np.random.default_rng(3).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    answers = executed(name, found.file).open(folder / found.file, 1).run(pixels)
    with torch.inference_mode():
        expected = models.load(sources.student)(torch.from_numpy(pixels))
    settings = exporters.load(name).Settings()
    if getattr(settings, "output", "logits") == "probabilities":
        expected = expected.softmax(1)
    expected = expected.numpy()
    assert answers.dtype == np.float32 and answers.shape == expected.shape
    apart = np.abs(answers - expected).mean() / expected.std()
    assert apart < settings.tolerance(variant.precision).difference


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_says_in_its_metadata_what_it_is(name, variant, made, sources):
    folder, found = made(name, variant)
    executes = runtime.for_file(name, found.file)
    assert executes is not None
    texts = runtime.load(executes).read_metadata(folder / found.file)
    output = getattr(exporters.load(name).Settings(), "output", "logits")
    told = sources.facts.texts(output)
    assert {key: texts.get(key) for key in told} == told
    assert json.loads(texts["labels"]) == list(sources.student.labels)
    assert contract.read_input(texts) == sources.student.input


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_without_what_it_is_made_of_it_is_a_programming_error(name, variant, sources, tmp_path):
    exporter = exporters.load(name)
    available = exporter.availability()
    if not available.ok:
        pytest.skip(available.detail)
    if variant.source == exporters.CHECKPOINT:
        pytest.skip("made from the student alone, which is always there")
    bare = Sources(student=sources.student, facts=sources.facts)
    with pytest.raises(TypeError):
        exporter.export(bare, variant, exporter.Settings(), tmp_path)


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_an_operator_that_no_format_holds_is_refused(name, variant, sources, tmp_path, monkeypatch):
    import models

    exporter = exporters.load(name)
    available = exporter.availability()
    if not available.ok:
        pytest.skip(available.detail)
    if name == "tensorrt":
        pytest.skip("only the builder would refuse it, and the builder needs a GPU")
    if variant.source != exporters.CHECKPOINT and name == "onnx":
        pytest.skip("made of graphs that were refused before")
    load = models.load
    monkeypatch.setattr(models, "load", lambda checkpoint: with_airy(load(checkpoint)))
    with pytest.raises(ExportError) as caught:
        exporter.export(
            with_strange_files(sources, tmp_path), variant, exporter.Settings(), tmp_path
        )
    assert caught.value.remedy and not isinstance(caught.value, NotNeededError)
    assert any(word in caught.value.message.lower() for word in ("airy", "strange"))


def with_airy(classifier):
    import torch

    class Airy(torch.nn.Module):
        def forward(self, x):
            return torch.special.airy_ai(x)

    classifier.network.set_submodule("2", Airy())
    return classifier


def with_strange_files(sources, folder):
    """`sources` whose ONNX files have an operator of nobody's."""
    import onnx

    files = {}
    for title, artifact in sources.files.items():
        model = onnx.load(artifact.path)
        node = model.graph.node[5]
        node.op_type, node.domain = "Strange", "nobody"
        model.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
        path = folder / f"{len(files)}.onnx"
        onnx.save(model, path)
        files[title] = artifact.model_copy(update={"folder": folder, "file": path.name})
    return dataclasses.replace(sources, files=files)


# ONNX in float16


def test_half_comes_after_the_file_it_is_made_of():
    exporter = exporters.load("onnx")
    offered = exporter.variants(exporter.Settings())
    assert [v.precision for v in offered] == ["fp32", "fp16", "fp32", "int8", "int8"]
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
    checkpoint = make_checkpoint("mobilenet_v3_small", channels=1)
    enliven(checkpoint, images)
    full = export_onnx(sources_of(checkpoint), Variant("fp32"), tmp_path_factory.mktemp("fp32"))
    return checkpoint, full, halve(checkpoint, full, tmp_path_factory.mktemp("fp16"))


def halve(checkpoint, full, folder):
    sources = sources_of(checkpoint, files=[full])
    return export_onnx(sources, Variant("fp16", source=full.title), folder)


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

    model = onnx.load(sources.files["onnx fp32"].path)
    weight = next(t for t in model.graph.initializer if t.name.endswith("weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = -7e4
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    source = Artifact(format="onnx", precision="fp32", folder=tmp_path, file="model.onnx")
    with pytest.raises(ExportError, match=f"65504, and `{weight.name}` reaches 70000") as caught:
        halve(sources.student, source, tmp_path)
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
