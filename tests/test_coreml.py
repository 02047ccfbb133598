"""The Core ML package, read back with coremltools: what a phone would be told of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporters.coreml as exporter
from exporters import Variant
from pipeline.errors import ExportError
from pipeline.records import Precision
from pipeline.store import file_sha256
from tests.conftest import sources_of

pytestmark = [
    pytest.mark.coreml,
    pytest.mark.skipif(
        not exporter.availability().ok, reason="coremltools is not installed (extra: coreml)"
    ),
]
ROOT = Path(__file__).parents[1]
FP16 = 10  # number of FLOAT16 in Core ML's MIL.proto


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def package(request, make_checkpoint, tmp_path_factory):
    """A student and the package made of it."""
    checkpoint = make_checkpoint(channels=request.param)
    return checkpoint, write(checkpoint, tmp_path_factory.mktemp("coreml"))


def write(checkpoint, folder, precision: Precision = "fp16", **settings):
    sources = sources_of(checkpoint)
    made = exporter.export(sources, Variant(precision), exporter.Settings(**settings), folder)
    return folder / made.file


def spec_of(package) -> Any:  # a protobuf message, whose stubs lead type checkers astray
    import coremltools as ct

    return ct.utils.load_spec(str(package))


def operations(spec):
    main = spec.mlProgram.functions["main"]
    return list(main.block_specializations[main.opset].operations)


def halves(spec, name):
    """The values of a float16 constant that is stored within the program."""
    (found,) = (op for op in operations(spec) if op.outputs[0].name == name)
    return np.frombuffer(found.attributes["val"].immediateValue.tensor.bytes.values, np.float16)


def test_input_is_an_image(package):
    checkpoint, path = package
    (image,) = spec_of(path).description.input
    kind = image.type.imageType
    assert image.name == "image"
    assert (kind.width, kind.height) == (checkpoint.input.size, checkpoint.input.size)
    colour = "GRAYSCALE" if checkpoint.input.channels == 1 else "RGB"
    assert kind.colorSpace == kind.ColorSpace.Value(colour)


def test_normalisation_is_inside(package):
    checkpoint, path = package
    spec = spec_of(path)
    taken = {}  # coremltools writes x * scale + shift per channel as a batch_norm
    for op in operations(spec):
        if op.type in ("mul", "add", "batch_norm"):
            taken |= {f"{op.type}.{key}": value for key, value in op.inputs.items()}
        if op.type == "conv":
            break
    scale, shift = (
        halves(spec, (taken.get(f"batch_norm.{fused}") or taken[plain]).arguments[0].name)
        for fused, plain in (("gamma", "mul.y"), ("beta", "add.y"))
    )
    mean, std = np.array(checkpoint.input.mean), np.array(checkpoint.input.std)
    pixels = np.array([[0], [100], [255]])
    expected = (pixels / 255 - mean) / std
    np.testing.assert_allclose(pixels * scale.astype(float) + shift, expected, atol=4e-3)


def test_labels_and_outputs(package):
    checkpoint, path = package
    spec = spec_of(path)
    label, numbers = spec.description.output
    assert label.name == spec.description.predictedFeatureName
    assert numbers.name == spec.description.predictedProbabilitiesName
    assert numbers.shortDescription == "probabilities by class"
    classify = operations(spec)[-1]
    assert classify.type == "classify"
    values = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
    found = tuple(value.immediateValue.tensor.strings.values[0] for value in values)
    assert found == checkpoint.labels


def test_logits_instead_of_probabilities(checkpoint, tmp_path):
    spec = spec_of(write(checkpoint, tmp_path, output="logits"))
    assert "softmax" not in {op.type for op in operations(spec)}
    assert spec.description.output[1].shortDescription == "logits by class"


def test_metadata(package):
    checkpoint, path = package
    about = spec_of(path).description.metadata
    facts = dict(about.userDefined)
    assert facts == sources_of(checkpoint).facts.texts("probabilities")
    assert about.license == "CC0"
    assert json.loads(facts["labels"]) == list(checkpoint.labels)
    assert json.loads(facts["input"]) == checkpoint.input.model_dump(mode="json")
    assert facts["student"] == about.versionString == checkpoint.key
    assert facts["arch"] == checkpoint.arch
    assert about.shortDescription


def test_weights_are_half_precision(package):
    checkpoint, path = package
    stored = {
        value.type.tensorType.dataType
        for op in operations(spec_of(path))
        if (value := op.attributes["val"]).WhichOneof("value") == "blobFileValue"
    }
    assert stored == {FP16}
    size = (path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
    assert size == pytest.approx(2 * checkpoint.params, rel=0.1)


@pytest.mark.parametrize(
    ("precision", "share"), [("w8a16", 0.5), ("w6a16", 0.375), ("w4a16", 0.25)]
)
def test_smaller_weights_are_smaller(precision, share, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(width=1.0)
    path = write(checkpoint, tmp_path, precision)
    size = (path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
    assert size == pytest.approx(2 * share * checkpoint.params, rel=0.15)
    kinds = {op.type for op in operations(spec_of(path))}
    assert any(kind.startswith("constexpr_") for kind in kinds)


def test_default_target_is_ios16(package):
    _, path = package
    spec = spec_of(path)
    assert spec.specificationVersion == 7
    assert spec.mlProgram.functions["main"].opset == "CoreML6"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "version"), [("iOS15", 6), ("iOS17", 8), ("iOS18", 9), ("iOS26", 10)]
)
def test_other_targets(checkpoint, tmp_path, target, version):
    spec = spec_of(write(checkpoint, tmp_path, minimum_target=target))
    assert spec.specificationVersion == version


def test_manifest_points_at_model_and_weights(package):
    _, path = package
    manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
    items = manifest["itemInfoEntries"]
    assert len(items) == 2
    assert items[manifest["rootModelIdentifier"]]["path"].endswith("model.mlmodel")
    for item in items.values():
        assert (path / "Data" / item["path"]).exists()
    assert {entry.name for entry in path.iterdir()} == {"Manifest.json", "Data"}


def test_coremltools_opens_the_package(package):
    import coremltools as ct

    _, path = package
    model = ct.models.MLModel(str(path), skip_model_load=True)
    assert model.weights_dir is not None and Path(model.weights_dir).is_relative_to(path)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_and_says_nothing(package, tmp_path):
    checkpoint, path = package
    code = f"""
from pathlib import Path
from exporters import Sources, coreml
from pipeline.contract import Facts
from pipeline.records import Checkpoint
student = Checkpoint.model_validate_json({checkpoint.model_dump_json()!r})
student = student.model_copy(update={{"folder": Path({str(checkpoint.folder)!r})}})
sources = Sources(student=student, facts=Facts.of(student, "CC0"))
variant = coreml.variants(coreml.Settings())[0]
coreml.export(sources, variant, coreml.Settings(), Path({str(tmp_path)!r}))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout, run.stderr) == ("", "")
    assert file_sha256(tmp_path / path.name) == file_sha256(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", ["mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v4_conv_small"]
)
def test_every_small_student_converts(arch, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(arch, width=1.0)
    assert operations(spec_of(write(checkpoint, tmp_path)))[-1].type == "classify"


def test_unknown_operator_is_named_with_its_layer(checkpoint):
    import torch

    import models

    class Bessel(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    classifier = models.load(checkpoint)
    classifier.network.set_submodule("features.3", Bessel())
    with pytest.raises(ExportError, match=r"network\.features\.3: .*special_bessel_j0") as caught:
        exporter.convert(classifier, checkpoint.input, checkpoint.labels, exporter.Settings())
    assert "student.arch" in caught.value.remedy
