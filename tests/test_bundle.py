"""The bundle: whole or not at all, true to what was measured, and able to check itself."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from exporters import onnx as onnx_exporter
from pipeline import bundle
from pipeline.bundle import card, golden, layout, manifest, snippets
from pipeline.bundle.manifest import FILE
from pipeline.errors import StoreError
from pipeline.records import Artifact, Measurement
from pipeline.store import file_sha256
from tests.small_run import SPEC, SmallRun

LABELS = ('bögen "x"', "line\nbreak", "皿|<b>*")
COUNT = 60
WEIGHTS = np.random.default_rng(1).normal(0, 0.03, (64, 3)).astype(np.float32)


def network(weights=WEIGHTS, output="logits", raw=False):
    """An ONNX classifier of 8 px grey images: one matrix, after the usual normalisation."""
    shape, kind = ([1, 8, 8], TensorProto.FLOAT) if raw else ([8, 8, 1], TensorProto.UINT8)
    taken = "pixels" if raw else "image"
    nodes = [helper.make_node("Flatten", ["normal"], ["flat"], axis=1)]
    constants = {"weights": weights}
    if raw:
        nodes.insert(0, helper.make_node("Identity", [taken], ["normal"]))
    else:
        constants |= {"scale": np.float32(255), "mean": np.float32(SPEC.mean[0])}
        constants["std"] = np.float32(SPEC.std[0])
        nodes = [
            helper.make_node("Cast", [taken], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "scale"], ["share"]),
            helper.make_node("Sub", ["share", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["normal"]),
            *nodes,
        ]
    last = "logits" if output == "logits" else "score"
    nodes.append(helper.make_node("MatMul", ["flat", "weights"], [last]))
    if output != "logits":
        nodes.append(helper.make_node("Softmax", [last], [output], axis=1))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(taken, kind, ["batch", *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answers(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def save_ort(model: Path, target: Path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


class BundledRun:
    """A run whose ONNX and ORT files are real; the others are there but cannot be run."""

    def __init__(self, folder: Path, labels=LABELS):
        self.records = SmallRun(folder / "records", n=COUNT, labels=labels)
        self.images = np.random.default_rng(2).integers(0, 256, (COUNT, 8, 8, 1), dtype=np.uint8)
        np.save(self.records.folder / "images.npy", self.images)
        self.records.add_model("teacher", 6, 40.0)
        self.records.add_model("baseline", 13, 9.0)
        self.student = self.records.add_model("student", 10, 9.0)
        self.dataset = self.records.dataset
        self.artifacts: list[tuple[Artifact, Measurement]] = []

    def add(self, name, precision, platforms, content, measured=None, **more):
        """`content(folder)` writes the file and returns its name."""
        folder = self.records.folder / f"{name}-{precision}-{len(self.artifacts)}"
        folder.mkdir()
        file = content(folder) if content else None
        artifact = Artifact(
            key=folder.name,
            folder=folder,
            format=name,
            precision=precision,
            platforms=platforms,
            file=file,
            bytes=7 if file else None,
            sha256=file_sha256(folder / file) if file else None,
        ).model_copy(update=more)
        found = Measurement(skipped="no such device here")
        if measured is not None:
            scores = answers(artifact.path, measured)
            found = self.records.measured(folder.name, scores, 3.0, self.student)
        self.artifacts.append((artifact, found))

    def add_usual(self):
        def onnx_file(**how):
            return lambda folder: onnx.save(network(**how), folder / "model.onnx") or "model.onnx"

        def ort_file(folder):
            model = folder / "source.tmp"
            onnx.save(network(output="probabilities"), model)
            save_ort(model, folder / "model.ort")
            (folder / "required_operators.config").write_text("ai.onnx;18;MatMul\n")
            return "model.ort"

        normal = (self.images / 255 - SPEC.mean[0]) / SPEC.std[0]
        pixels = normal.transpose(0, 3, 1, 2).astype(np.float32)
        coarse = WEIGHTS.round(2)
        self.add("onnx", "fp32", ("android", "web"), onnx_file(), self.images)
        self.add("onnx", "int8", ("android", "web"), onnx_file(weights=coarse), self.images)
        self.add("onnx", "fp32", ("web",), onnx_file(raw=True), pixels, variant="raw")
        self.add(
            *("ort", "fp32", ("android", "ios"), ort_file, self.images),
            extras=("required_operators.config",),
            output="probabilities",
            notes=("Opens | in minimal builds.",),
        )
        self.add("coreml", "fp16", ("ios",), package, output="probabilities")
        self.add("litert", "int8", ("android",), fake("model.tflite"))
        self.add("tensorrt", "int8", ("nvidia",), None, skipped="needs a GPU to build")
        return self

    def report(self):
        self.records.artifacts = bundle.placed(self.artifacts)
        return self.records.report()

    def write(self, folder: Path) -> Path:
        bundle.write(self.report(), self.dataset, self.artifacts, folder)
        return folder / "bundle"


def fake(name):
    return lambda folder: (folder / name).write_bytes(b"nothing") and name


def package(folder):
    inner = folder / "model.mlpackage" / "Data" / "com.apple.CoreML"
    inner.mkdir(parents=True)
    (inner / "model.mlmodel").write_bytes(b"spec")
    (folder / "model.mlpackage" / "Manifest.json").write_text("{}")
    return "model.mlpackage"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return BundledRun(tmp_path_factory.mktemp("run")).add_usual()


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """A bundle that nobody changes, below a path that needs quoting."""
    return run.write(tmp_path_factory.mktemp("shipped") / "a run's – é")


@pytest.fixture
def shipped(made, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "on another machine"))


def selftest(folder, *options, **environment):
    return subprocess.run(
        [sys.executable, str(folder / "selftest.py"), *options],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **environment},
    )


# ---- layout ----


def test_every_file_lies_in_the_folder_of_each_of_its_platforms(made):
    files = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    assert files - {f"golden/{i:02}.png" for i in range(16)} == {
        *("manifest.json", "labels.txt", "MODEL_CARD.md", "selftest.py", "golden/expected.json"),
        *("android/onnx/fp32/model.onnx", "web/onnx/fp32/model.onnx"),
        *("android/onnx/int8/model.onnx", "web/onnx/int8/model.onnx"),
        "web/onnx/fp32-raw/model.onnx",
        *("android/ort/fp32/model.ort", "android/ort/fp32/required_operators.config"),
        *("ios/ort/fp32/model.ort", "ios/ort/fp32/required_operators.config"),
        "ios/coreml/fp16/model.mlpackage/Manifest.json",
        "ios/coreml/fp16/model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "android/litert/int8/model.tflite",
        *("android/OnnxRuntime.kt", "android/LiteRT.kt", "ios/CoreML.swift"),
        "web/onnxruntime-web.js",
    }
    copies = [made / platform / "onnx/fp32/model.onnx" for platform in ("android", "web")]
    assert len({copy.stat().st_ino for copy in copies}) == 1


def test_a_file_is_never_linked_to_the_store(run, made):
    artifact = run.artifacts[0][0]
    assert not (made / bundle.place(artifact)).samefile(artifact.path)


def test_place_is_the_first_of_the_places(run):
    artifact = run.artifacts[0][0]
    assert bundle.place(artifact) == bundle.places(artifact)[0] == "android/onnx/fp32/model.onnx"
    symmetric = artifact.model_copy(update={"variant": "symmetric", "platforms": ()})
    assert bundle.places(symmetric) == ("other/onnx/fp32-symmetric/model.onnx",)
    with pytest.raises(ValueError, match="needs a GPU"):
        bundle.place(run.artifacts[-1][0])


def test_two_files_in_one_place_are_refused(run, tmp_path):
    artifact = run.artifacts[0][0]
    layout.lay(artifact, tmp_path)
    with pytest.raises(StoreError, match="share one place"):
        layout.lay(artifact, tmp_path)


def test_a_platform_without_links_gets_copies(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert bundle.check(run.write(tmp_path)) == []


def test_labels_are_one_a_line_in_the_order_of_the_answers(made):
    text = (made / "labels.txt").read_bytes().decode("utf-8")
    assert text == 'bögen "x"\nline break\n皿|<b>*\n'
    assert bundle.read(made).labels.names == LABELS


def test_a_bundle_is_replaced_as_a_whole_and_repeats_byte_for_byte(run, tmp_path):
    first = run.write(tmp_path)
    sums = file_sha256(first)
    (first / "old.txt").write_text("of an older run")
    (tmp_path / ".bundle.new").mkdir()
    (tmp_path / ".bundle.new" / "rest.txt").write_text("of a run that was killed")
    assert file_sha256(run.write(tmp_path)) == sums
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_where_a_file_is_gone_the_old_bundle_stays(tmp_path):
    run = BundledRun(tmp_path)
    run.add("litert", "fp32", ("android",), fake("model.tflite"))
    whole = run.write(tmp_path / "run")
    run.artifacts[0][0].path.unlink()
    with pytest.raises(StoreError, match="its file is gone"):
        run.write(tmp_path / "run")
    assert bundle.check(whole) == [] and not (tmp_path / "run" / ".bundle.new").exists()


# ---- manifest ----


def test_the_manifest_says_what_was_measured(run, made):
    told = bundle.read(made)
    plain, int8, raw, ort, coreml, litert, tensorrt = told.files
    artifact, found = run.artifacts[0]
    assert plain.sha256 == artifact.sha256 == file_sha256(made / plain.paths[1])
    assert plain.paths == ("android/onnx/fp32/model.onnx", "web/onnx/fp32/model.onnx")
    assert (plain.top1, plain.n) == (found.accuracy.top1, COUNT)
    assert plain.top1_ci95 == found.accuracy.top1_ci95
    assert plain.evaluated_with == "onnxruntime 1.32.0"
    assert plain.parity and plain.parity.model_dump() == found.parity.model_dump()
    assert plain.latency and plain.latency.p99_ms == found.latency.p99_ms
    assert plain.latency.host == run.records.host
    assert int8.precision == "int8" and raw.variant == "raw"
    assert ort.output == "probabilities" and ort.notes == ("Opens | in minimal builds.",)
    assert ort.extras[0].paths[1] == "ios/ort/fp32/required_operators.config"
    assert (coreml.top1, coreml.skipped) == (None, "no such device here")
    assert litert.paths == ("android/litert/int8/model.tflite",)
    assert (tensorrt.paths, tensorrt.sha256) == ((), None)
    assert tensorrt.skipped == "needs a GPU to build; no such device here"


def test_the_manifest_says_what_it_is_of(run, made):
    told, raw = bundle.read(made), json.loads((made / FILE).read_text(encoding="utf-8"))
    assert raw["schema"] == 1 and told.schema_version == 1
    assert told.run == "quick" and told.created == run.report().date
    assert told.input.spec == SPEC and "uint8 [1, 8, 8, 1]" in told.input.sentence
    assert told.output.classes == 3 and told.licence == "MIT"
    assert (told.student.key, told.student.arch) == ("student-key", "mobilenet_v2")
    assert told.tools["torch"] == "2.14.1"  # what the report says, not what is installed
    assert told.labels.sha256 == told.others["labels.txt"]
    assert "SHA-256" in told.hashing


def test_every_file_of_the_bundle_has_a_checksum(made):
    named = dict(bundle.read(made).checksums())
    for path in made.rglob("*"):
        name = path.relative_to(made).as_posix()
        covered = name in named or any(name.startswith(f"{folder}/") for folder in named)
        assert path.is_dir() or covered or name == FILE


def test_a_whole_bundle_has_no_fault(made):
    assert bundle.check(made) == []


@pytest.mark.parametrize(
    "name",
    [
        "android/onnx/fp32/model.onnx",
        "ios/ort/fp32/required_operators.config",
        "ios/coreml/fp16/model.mlpackage/Manifest.json",
        "golden/expected.json",
        "golden/07.png",
        "labels.txt",
    ],
)
@pytest.mark.parametrize("how", ["cut", "altered", "gone"])
def test_what_was_cut_altered_or_lost_is_told(shipped, name, how):
    file = shipped / name
    content = file.read_bytes()
    file.unlink()  # the other platform's copy stays as it is
    if how != "gone":
        file.write_bytes(content[:-1] if how == "cut" else content.replace(content[:1], b"Q", 1))
    faults = bundle.check(shipped)
    missing = how == "gone" and ".mlpackage" not in name
    assert ("is missing" if missing else "SHA-256 differs") in faults[0]
    assert any(part in faults[0] for part in (name, "ios/coreml/fp16/model.mlpackage "))
    assert selftest(shipped).returncode == 1


def test_labels_of_the_wrong_number_are_told(shipped):
    with (shipped / "labels.txt").open("a", encoding="utf-8") as file:
        file.write("one more\n")
    assert "labels.txt has 4 labels, one a line, for 3 classes" in bundle.check(shipped)
    assert "labels.txt" in selftest(shipped).stdout


def test_labels_that_are_no_utf8_are_told(shipped):
    (shipped / "labels.txt").write_bytes("bögen\nb\nc\n".encode("latin-1"))
    assert "labels.txt is not UTF-8" in bundle.check(shipped)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "it has no manifest.json"),
        ("{", "damaged"),
        ("[]", "unknown schema None"),
        ('{"schema": 2}', "unknown schema 2"),
        ('{"schema": 1}', "run: Field required"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_told(shipped, text, told):
    (shipped / FILE).unlink()
    if text is not None:
        (shipped / FILE).write_text(text)
    with pytest.raises(StoreError, match=told):
        bundle.read(shipped)
    (fault,) = bundle.check(shipped)
    assert told in fault
    assert selftest(shipped).returncode == 1


# ---- golden images ----


def test_golden_images_are_test_images_losslessly(run, made):
    expected = json.loads((made / "golden/expected.json").read_text(encoding="utf-8"))
    assert len(expected["images"]) == 16
    for image in expected["images"]:
        with Image.open(made / "golden" / image["file"]) as png:
            assert png.mode == "L" and png.size == (8, 8)
            assert np.array_equal(np.asarray(png), run.images[image["test_image"]][..., 0])
        assert image["label"] == LABELS[run.records.truth[image["test_image"]]]


@pytest.mark.parametrize(
    ("classes", "each", "counts"), [(3, 20, (6, 5, 5)), (16, 2, (1,) * 16), (8, 9, (2,) * 8)]
)
def test_golden_images_are_spread_over_the_classes(classes, each, counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), each))
    rows = golden.rows(labels)
    assert len(set(rows.tolist())) == 16
    assert tuple(np.bincount(labels[rows])) == counts


def test_of_many_classes_some_are_shown_and_small_test_sets_as_they_are():
    labels = np.repeat(np.arange(100), 3)
    assert len(set(labels[golden.rows(labels)])) == 16
    assert labels[golden.rows(labels)].max() == 99
    assert sorted(golden.rows(np.array([2, 0, 0]))) == [0, 1, 2]


def test_expected_answers_are_those_that_were_measured(run, made):
    expected = json.loads((made / "golden/expected.json").read_text(encoding="utf-8"))
    first, *_, litert = expected["files"]
    assert first["path"] == "android/onnx/fp32/model.onnx" and first["output"] == "logits"
    scores = np.load(run.records.folder / run.artifacts[0][1].accuracy.predictions)
    for image, answer in zip(expected["images"], first["answers"], strict=True):
        row = scores[image["test_image"]]
        assert [label for label, _ in answer] == [LABELS[i] for i in np.argsort(-row)]
        assert [score for _, score in answer] == pytest.approx(np.sort(row)[::-1].tolist(), 1e-6)
    assert litert["answers"] is None and litert["reason"] == "no such device here"


def test_tolerances_follow_precision_and_spread():
    scores = np.random.default_rng(0).normal(0, 2, (500, 10)).astype(np.float32)
    allowed = [golden.tolerance(scores, "logits", p) for p in ("fp32", "fp16", "int8")]
    assert allowed == pytest.approx([0.002, 0.1, 0.8], rel=0.05)
    powers = np.exp(scores)
    shares = powers / powers.sum(1, keepdims=True)
    assert golden.tolerance(shares, "probabilities", "int8") == golden.MOST
    assert golden.tolerance(shares, "probabilities", "fp16") == pytest.approx(0.05, rel=0.1)
    assert golden.tolerance(scores * np.nan, "logits", "fp32") is None


def test_every_precision_has_a_tolerance():
    from typing import get_args

    from pipeline.records import Precision

    assert set(golden.SHARE) == set(get_args(Precision)) == set(snippets.ORDER)


# ---- selftest.py ----


def test_selftest_runs_what_can_be_run_here(made):
    done = selftest(made)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if "/" in line}
    for ran in ("onnx/fp32", "onnx/int8", "ort/fp32"):
        assert "  ok  " in rows[f"android/{ran}/model.{ran[:4].rstrip('/')}"]
    assert "  ok  " in rows["web/onnx/fp32-raw/model.onnx"]
    assert "no such device here" in rows["ios/coreml/fp16/model.mlpackage"]
    assert "not run" in rows["android/litert/int8/model.tflite"]
    assert not (made / "__pycache__").exists()


def test_selftest_of_one_format(made):
    done = selftest(made, "--only", "ort")
    assert done.returncode == 0 and "model.ort" in done.stdout and ".onnx" not in done.stdout
    assert selftest(made, "--only", "litert").returncode == 2
    wrong = selftest(made, "--only", "onx")
    assert wrong.returncode == 2 and "no file has the format onx" in wrong.stderr


def forge(folder, change):
    """Alter the expected answers as if they had been exported so."""
    path = folder / "golden/expected.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    change(body)
    path.write_text(json.dumps(body), encoding="utf-8")
    told = json.loads((folder / FILE).read_text(encoding="utf-8"))
    told["others"]["golden/expected.json"] = file_sha256(path)
    (folder / FILE).write_text(json.dumps(told), encoding="utf-8")


def test_selftest_tells_another_answer(shipped):
    def change(body):
        body["files"][0]["answers"][3][0][1] += 0.5

    forge(shipped, change)
    done = selftest(shipped)
    assert done.returncode == 1
    assert "differs  1 of 16 images" in done.stdout
    assert "03.png: a score is off by 0.5" in done.stdout


def swapped(gap):
    """Puts the second label first, so that scores are within the tolerance; `gap` is between them,
    in tolerances."""

    def change(body):
        file = body["files"][0]
        (best, high), (second, low), third = file["answers"][0]
        allowed = file["tolerance"] = 2 * (high - low)
        middle, half = (high + low) / 2, gap * allowed / 2
        file["answers"][0] = [[second, middle + half], [best, middle - half], third]

    return change


@pytest.mark.parametrize(("gap", "code"), [(0.9, 0), (1.1, 1)])
def test_another_class_counts_unless_two_are_as_good(shipped, gap, code):
    forge(shipped, swapped(gap))
    done = selftest(shipped)
    assert done.returncode == code and ("00.png: names " in done.stdout) == bool(code)


def test_selftest_says_where_there_is_nothing_to_compare_with(shipped):
    forge(shipped, lambda body: body["files"][0].update(answers=None, reason="x"))
    assert "no answers to compare with: x" in selftest(shipped).stdout


def test_selftest_does_not_run_an_altered_file(shipped):
    file = shipped / "android/onnx/int8/model.onnx"
    file.unlink()
    onnx.save(network(), file)
    done = selftest(shipped)
    assert done.returncode == 1
    assert "android/onnx/int8/model.onnx was altered or cut short" in done.stdout
    assert "not run  it was altered" in done.stdout


def test_selftest_tells_a_file_that_the_runtime_refuses(tmp_path):
    run = BundledRun(tmp_path)
    run.add("onnx", "fp32", ("web",), lambda f: onnx.save(network(), f / "m.onnx") or "m.onnx")
    artifact, _ = run.artifacts[0]
    scores = answers(artifact.path, run.images)
    artifact.path.write_bytes(b"no graph")
    sha256 = file_sha256(artifact.path)
    found = run.records.measured("x", scores, 3.0, run.student)
    run.artifacts = [(artifact.model_copy(update={"sha256": sha256}), found)]
    done = selftest(run.write(tmp_path / "run"))
    assert done.returncode == 1 and "differs  failed: " in done.stdout


def without(tmp_path, *names):
    """A folder of modules that cannot be found, first on the path of a process."""
    code = (
        "import importlib.util as u\nfound = u.find_spec\n"
        f"u.find_spec = lambda n, *a: None if n in {names} else found(n, *a)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path)}


def test_selftest_says_what_to_install(made, tmp_path):
    done = selftest(made, **without(tmp_path, "numpy", "PIL"))
    assert done.returncode == 2
    assert "install numpy and pillow" in done.stdout and "none of" in done.stdout


def test_selftest_without_a_runtime_has_run_nothing(made, tmp_path):
    done = selftest(made, **without(tmp_path, "onnxruntime"))
    assert done.returncode == 2 and "onnxruntime is not installed" in done.stdout


def test_selftest_imports_nothing_of_this_project(made):
    text = (made / "selftest.py").read_text(encoding="utf-8")
    assert not [name for name in ("pipeline", "exporters", "runtime.") if f"import {name}" in text]


def old_python():
    for name in ("3.9", "3.10"):
        for found in (*Path("~/.pyenv/versions").expanduser().glob(f"{name}.*/bin/python"),):
            return str(found)
    return shutil.which("python3.9") or shutil.which("python3.10")


def test_selftest_starts_with_an_old_python(made):
    python = old_python()
    if python is None:
        pytest.skip("needs Python 3.9 or 3.10")
    done = subprocess.run(
        [python, "-B", str(made / "selftest.py")], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode in (0, 2) and "checksums: none of" in done.stdout, done.stderr


# ---- snippets ----


def balanced(text):
    """Whether brackets close in order; strings here hold none that do not."""
    stack, pairs = [], {")": "(", "]": "[", "}": "{"}
    for char in text:
        if char in pairs.values():
            stack.append(char)
        elif char in pairs and (not stack or stack.pop() != pairs[char]):
            return False
    return not stack


SNIPPETS = {
    "android/OnnxRuntime.kt": ("onnx/int8/model.onnx", 'get("logits")', '"image" to', "softmax("),
    "android/LiteRT.kt": ("litert/int8/model.tflite", "SIZE = 8", "CHANNELS = 1", "softmax("),
    "ios/CoreML.swift": ("coreml/fp16/model.mlpackage", '"mlmodelc"', '["image"]', "VNCoreML"),
    "web/onnxruntime-web.js": ("onnx/int8/model.onnx", '["logits"]', '"image": image', "softmax("),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_have_the_real_names(made, name):
    text = (made / name).read_text(encoding="utf-8")
    assert not [part for part in SNIPPETS[name] if part not in text]
    assert (made / name.split("/")[0] / SNIPPETS[name][0]).exists()
    assert "{{" not in text and "{%" not in text and balanced(text.replace("'", ""))
    if "CoreML" not in name:
        assert "labels.txt" in text and ("shr 16" in text or ">> 16" in text)  # grey
    assert "raw" not in text.replace("drawn", "").replace("draw", "").replace("rawValue", "")


def test_snippets_of_colour_and_probabilities(tmp_path):
    run = BundledRun(tmp_path)
    model = lambda f: onnx.save(network(output="probabilities"), f / "m.onnx") or "m.onnx"  # noqa: E731
    run.add("onnx", "fp32", ("web", "android"), model, output="probabilities")
    told = manifest.build(run.report(), run.dataset, run.artifacts)
    spec = SPEC.model_copy(update={"channels": 3, "size": 224})
    facts = told.input.model_copy(update={"spec": spec, "crop_fraction": 0.875})
    folder = tmp_path / "bundle"
    for platform in ("web", "android"):
        (folder / platform).mkdir(parents=True)
    written = snippets.write(told.model_copy(update={"input": facts}), folder)
    assert written == ["android/OnnxRuntime.kt", "web/onnxruntime-web.js"]
    for name in written:
        text = (folder / name).read_text(encoding="utf-8")
        assert "0.875" in text and "224" in text and "probabilities already" in text
        assert "softmax" not in text and ">> 16" not in text and "m.onnx" in text
        assert "not run when it was made" in text and balanced(text.replace("'", ""))


def test_the_names_are_those_of_the_exporter():
    assert snippets.INPUT == onnx_exporter.INPUT
    assert onnx_exporter.OUTPUT == "logits"


def test_the_web_snippet_is_javascript(made):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    code = (made / "web/onnxruntime-web.js").read_text(encoding="utf-8")
    done = subprocess.run(
        ["node", "--check", "--input-type=module"], input=code, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ---- model card ----


def test_the_card_has_every_number_that_counts(run, made):
    text = (made / "MODEL_CARD.md").read_text(encoding="utf-8")
    report = run.report()
    for row in report.artifacts:
        if row.top1 is not None:
            assert f"{100 * row.top1:.2f}" in text
            assert f"{100 * row.top1_ci95[0]:.2f}–{100 * row.top1_ci95[1]:.2f}" in text
    for told in (
        *("three kinds of things", "MIT", "d1" * 32, "5,000 to train", "mobilenet\\_v2"),
        *("distill.temperature", "| 4.0 |", "student-key", "phone-1t", "minmax, 512"),
        "`android/litert/int8/model.tflite`, not run here: no such device here",
        "Not in this bundle: tensorrt int8: needs a GPU to build",
        *("`android/OnnxRuntime.kt`", "Opens \\| in minimal builds.", "no other", "a phone"),
    ):
        assert told in text, told
    assert "95 % interval of the difference" in text  # of the gain


def test_the_card_escapes_labels_and_lists_the_worst_first(run, made):
    text = (made / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert '| bögen "x" |' in text and "| line break |" in text and "| 皿\\|\\<b\\>\\* |" in text
    rows = card.classes(run.report())
    shares = [float(row.student) for row in rows]
    assert shares == sorted(shares) and len(rows) == 3


def test_many_classes_are_folded(tmp_path):
    run = BundledRun(tmp_path, labels=tuple(f"class {i}" for i in range(30)))
    run.add("litert", "int8", ("android",), fake("model.tflite"))
    text = (run.write(tmp_path / "run") / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "<summary>The other 10 classes</summary>" in text


def test_tables_of_the_card_have_as_many_cells_as_columns(made):
    lines = (made / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()
    for above, line in pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            cells = [text.replace("\\|", "").count("|") for text in (above, line)]
            assert cells[0] == cells[1], (above, line)
