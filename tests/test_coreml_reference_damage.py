"""The reference executor's refusals: damaged packages, and what it cannot execute.

Each is told of when the file is opened, with what is wrong, where, and how to mend it.
"""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from exporters import coreml as exporter
from pipeline.errors import ExportError
from runtime import coreml_reference
from runtime.coreml_reference import package as packages
from tests.coreml_files import builder, quiet, student, tools, write

pytestmark = [
    pytest.mark.coreml,
    pytest.mark.skipif(
        not exporter.availability().ok, reason="coremltools is not installed (extra: coreml)"
    ),
]

WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small student and its package."""
    classifier = student(width=0.35)
    return classifier, write(classifier, tmp_path_factory.mktemp("small") / "model.mlpackage")


@pytest.fixture
def copy(small, tmp_path):
    """A package that may be damaged."""
    return shutil.copytree(small[1], tmp_path / "copy.mlpackage")


def refused(path, match):
    with pytest.raises(ExportError, match=match) as caught:
        coreml_reference.open(path, 1)
    assert str(path) in caught.value.message and caught.value.remedy
    return caught.value


def alter(path, change):
    """Let `change` alter the specification in `path`."""
    spec = packages.read(path).spec
    main = spec.mlProgram.functions["main"]
    change(spec, main, main.block_specializations[main.opset])
    (path / MODEL).write_bytes(spec.SerializeToString())


def test_every_unknown_operator_is_named_with_its_values(tmp_path):
    ct = tools()
    mb = builder()

    def build(x):
        several = mb.cumsum(x=mb.cumsum(x=x, axis=1, name="one"), axis=1, name="two")
        return mb.reduce_prod(x=several, axes=[1], name="three")

    with quiet():
        program = mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))])(build)
        ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(
            str(tmp_path / "m.mlpackage")
        )
    error = refused(tmp_path / "m.mlpackage", r"lacks cumsum \(one.*, two.*\); reduce_prod \(three")
    assert "operators.py" in error.remedy


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("Manifest.json", "Manifest.json cannot be read"),
        (MODEL, "model.mlmodel cannot be read"),
        (WEIGHTS, "weight.bin cannot be read"),
    ],
)
def test_missing_files(copy, file, match):
    (copy / file).unlink()
    refused(copy, match)


def test_no_package_at_all(tmp_path):
    refused(tmp_path / "none.mlpackage", "Manifest.json cannot be read")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rootModelIdentifier": "a"}'])
def test_damaged_manifest(copy, text):
    (copy / "Manifest.json").write_text(text, encoding="utf-8")
    refused(copy, "does not say which file")


def test_manifest_of_another_model(copy):
    manifest = json.loads((copy / "Manifest.json").read_text(encoding="utf-8"))
    for item in manifest["itemInfoEntries"].values():
        item["path"] = "elsewhere"
    (copy / "Manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    refused(copy, "elsewhere cannot be read")


@pytest.mark.parametrize(
    ("length", "match"), [(10, "too short"), (0.5, "ends after"), (-1, "ends after")]
)
def test_truncated_weights(copy, length, match):
    data = (copy / WEIGHTS).read_bytes()
    cut = int(length * len(data)) if length == 0.5 else length
    (copy / WEIGHTS).write_bytes(data.rstrip(b"\0")[:cut])
    refused(copy, match)


@pytest.mark.parametrize(
    ("offset", "number", "match"),
    [
        (4, 1, "of version 1"),
        (64, 7, "no tensor's record at byte 64"),
        (68, 4, "holds int8 at byte 64, and the program says fp16"),
        (68, 99, "holds type 99 at byte 64"),
        (72, 6, "byte 64: .* does not take 6 bytes"),
        (80, 2**31, "ends after"),
    ],
)
def test_altered_weights(copy, offset, number, match):
    data = bytearray((copy / WEIGHTS).read_bytes())
    struct.pack_into("<I", data, offset, number)
    (copy / WEIGHTS).write_bytes(data)
    refused(copy, match)


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, -1])
def test_truncated_specification(copy, cut):
    data = (copy / MODEL).read_bytes()
    (copy / MODEL).write_bytes(data[: int(cut * len(data)) if cut == 0.5 else cut])
    refused(copy, "no Core ML specification|holds no model|has no function|fault|damaged|not")


def test_a_neural_network_is_no_program(copy):
    alter(copy, lambda spec, main, block: spec.neuralNetwork.SetInParent())
    error = refused(copy, "holds neuralNetwork, and only ML programs")
    assert "iOS15" in error.remedy


def first(block, kind):
    return next(each for each in block.operations if each.type == kind)


def shorten(shape):
    shape.dimensions[1].constant.size -= 1


ALTERATIONS = {
    "a name that nothing computes": (
        lambda spec, main, block: setattr(
            first(block, "conv").inputs["x"].arguments[0], "name", "nothing"
        ),
        r"needs \['nothing'\]",
    ),
    "an unknown parameter": (
        lambda spec, main, block: (
            first(block, "conv").inputs["speed"].CopyFrom(first(block, "conv").inputs["groups"])
        ),
        "conv .*cannot be executed.*speed",
    ),
    "a parameter less": (
        lambda spec, main, block: first(block, "conv").inputs.pop("weight"),
        "conv .*cannot be executed.*weight",
    ),
    "another shape": (
        lambda spec, main, block: shorten(first(block, "conv").outputs[0].type.tensorType),
        r"conv .*it gives \[1, \d+, 32, 32\].*the program says \[1, \d+, 32, 32\]",
    ),
    "another type": (
        lambda spec, main, block: setattr(
            first(block, "conv").outputs[0].type.tensorType, "dataType", 23
        ),
        "of torch.float32, and the program says .* of int32",
    ),
    "another image": (
        lambda spec, main, block: setattr(spec.description.input[0].type.imageType, "width", 31),
        r"image is \[1, 3, 32, 31\], and its program takes \[1, 3, 32, 32\]",
    ),
    "an image of half precision": (
        lambda spec, main, block: setattr(
            spec.description.input[0].type.imageType, "colorSpace", 40
        ),
        "colour space GRAYSCALE_FLOAT16",
    ),
    "no image": (
        lambda spec, main, block: spec.description.input[0].type.multiArrayType.SetInParent(),
        "takes .*multiArrayType.*, where one image is expected",
    ),
    "a label less": (
        lambda spec, main, block: (
            first(block, "classify")
            .inputs["classes"]
            .arguments[0]
            .value.immediateValue.list.values.pop()
        ),
        "names 4 classes and gives 5 numbers",
    ),
    "weights elsewhere": (
        lambda spec, main, block: [
            setattr(each.attributes["val"].blobFileValue, "fileName", "@model_path/../../../x.bin")
            for each in block.operations
            if each.type == "const"
            and each.attributes["val"].WhichOneof("value") == "blobFileValue"
        ],
        "lie outside of it",
    ),
    "a shape that is not fixed": (
        lambda spec, main, block: (
            first(block, "conv").outputs[0].type.tensorType.dimensions[0].unknown.SetInParent()
        ),
        "is not fixed",
    ),
    "no operators": (
        lambda spec, main, block: setattr(main, "opset", "CoreML99"),
        "no operators of opset 'CoreML99'",
    ),
    "another function": (
        lambda spec, main, block: setattr(spec.description, "defaultFunctionName", "other"),
        "has no function other",
    ),
    "a constant without a value": (
        lambda spec, main, block: first(block, "const").attributes["val"].Clear(),
        "has no value",
    ),
}


@pytest.mark.parametrize("case", ALTERATIONS)
def test_altered_specification(copy, case):
    change, match = ALTERATIONS[case]
    alter(copy, change)
    refused(copy, match)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 32, 1), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.float32),
    ],
)
def test_images_of_another_kind(small, images):
    session = coreml_reference.open(small[1], 1)
    with pytest.raises(ExportError, match=r"the file takes uint8 \[batch, 32, 32, 3\]"):
        session.run(images)
