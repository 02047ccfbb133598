"""Exporting a checkpoint alone, as somebody does who trained it elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import models
from pipeline import bundle, exporting, imported, references
from pipeline.errors import CheckpointError, ConfigError, DataError, VerificationError
from pipeline.store import Store
from runtime import onnx_runtime
from tests.pictures import CLASSES, make_set

ROOT = Path(__file__).parents[1]
SIZE = 32
WIDTH = 0.35


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weights file of a MobileNetV2 that tells the pictures apart a little, in a folder whose
    name has a space."""
    torch.manual_seed(0)
    network = models.build(
        "mobilenet_v2", classes=len(CLASSES), channels=1, image_size=SIZE, width=WIDTH
    )
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("my weights") / "student.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    make_set(folder, train=40, test=10)
    return folder


def request(what, *, origin=None, **more):
    usual = {
        "formats": ("onnx",),
        "images": None,
        "verify": 24,
        "name": None,
        "overrides": ("measure.profile=smoke", "quantize.calibration=minmax"),
        "command": "test",
    }
    known = origin or imported.Origin(arch="mobilenet_v2", size=SIZE, channels=1, width=WIDTH)
    return exporting.Request(checkpoint=str(what), origin=known, **usual | more)


def run(folder, *words, **options):
    return exporting.run(request(*words, **options), Store(folder / ".store"), folder)


@pytest.fixture(scope="module")
def exported(weights, images, tmp_path_factory):
    """Runs folder, folder and report of an export with images."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, *run(runs, weights, images=images, formats=("ort",))


def test_a_weights_file_becomes_a_verified_bundle(exported):
    _, folder, report = exported
    assert folder.name == "student-export"
    rows = {row.title: row for row in report.artifacts}
    assert {"onnx fp32", "onnx int8", "ort fp32", "ort int8"} <= set(rows)
    for title in ("onnx fp32", "ort fp32"):
        assert rows[title].n == 24 and rows[title].agreement == 1.0
        assert (folder / rows[title].path).is_file()
    assert report.labels == tuple(sorted(CLASSES))
    assert bundle.check(folder / "bundle") == []
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["student"]["key"] == report.model("student").key
    assert (folder / "report.html").is_file()


def test_the_second_time_nothing_is_made_again(exported, weights, images):
    runs, _, _ = exported
    store = Store(runs / ".store")
    exporting.run(request(weights, images=images, formats=("ort",)), store, runs)
    assert store.outcomes and all(outcome.reused for outcome in store.outcomes)


def test_without_images_there_is_no_int8_and_noise_tells_parity(weights, tmp_path, capsys):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "report.html").write_text("of an earlier export")
    folder, report = run(tmp_path, weights, name="alone")
    assert report is None and not (folder / "report.html").exists()
    shipped = {path.parent.name for path in (folder / "bundle").rglob("model.onnx")}
    assert shipped == {"fp32", "fp16"}
    said = capsys.readouterr().err
    assert "100.00% agree over 64 images" in said
    assert "needs quantized, and there are no images" in said


def test_labels_and_normalisation_go_into_the_file(weights, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("Löwe\nчай\n猫\n", encoding="utf-8")
    origin = imported.Origin(
        arch="mobilenet_v2",
        size=SIZE,
        channels=1,
        width=WIDTH,
        labels=imported.read_labels(labels),
        mean=(0.25,),
        std=(0.125,),
    )
    folder, _ = run(tmp_path, weights, origin=origin)
    (path,) = (folder / "bundle" / "web").rglob("fp32/model.onnx")
    texts = onnx_runtime.read_metadata(path)
    assert json.loads(texts["labels"]) == ["Löwe", "чай", "猫"]
    network = models.build(
        "mobilenet_v2", classes=3, channels=1, image_size=SIZE, width=WIDTH
    ).eval()
    network.load_state_dict(torch.load(weights))
    pixels = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 1), dtype=np.uint8)
    with torch.inference_mode():
        normal = torch.from_numpy((pixels / 255 - 0.25) / 0.125).float().permute(0, 3, 1, 2)
        expected = network(normal).numpy()
    np.testing.assert_allclose(onnx_runtime.open(path, 1).run(pixels), expected, atol=1e-4)


def test_a_network_by_its_name(tmp_path):
    origin = imported.Origin(size=64, untrained=True)
    folder, _ = run(tmp_path, "torchvision/squeezenet1_1", origin=origin)
    (path,) = (folder / "bundle" / "web").rglob("fp32/model.onnx")
    assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 1000


def test_a_stores_folder(exported, tmp_path):
    runs, _, report = exported
    folder = runs / ".store" / "import" / report.model("student").key
    own, other = Store(runs / ".store"), Store(tmp_path)
    for store, noted in ((own, (f"import/{folder.name}",)), (other, ())):
        with store.referred_by(tmp_path / "x"):
            found, past = imported.find(
                str(folder), imported.Origin(), None, exporting.context_of(store), runs
            )
            (note,) = (n for n in references.read(store.root) if n.owner == tmp_path / "x")
            assert note.reference.results == noted
        references.forget(note)
        assert past is None and found.key == report.model("student").key


def test_a_store_folder_knows_its_own_network(exported):
    runs, _, report = exported
    folder = runs / ".store" / "import" / report.model("student").key
    with pytest.raises(ConfigError, match="knows its network"):
        run(runs, folder, origin=imported.Origin(size=64))


def test_labels_of_folders_are_told(exported, weights, images, capsys):
    runs, _, _ = exported
    run(runs, weights, images=images, formats=("ort",))
    assert "names of the class folders, sorted: bars, dots, rings" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["empty", "flat"])
def test_images_in_no_class_folders(layout, weights, tmp_path):
    (tmp_path / "photos").mkdir()
    if layout == "flat":
        make_set(tmp_path / "set", train=1, test=1, classes=1)
        (tmp_path / "set" / "train" / CLASSES[0] / "0000.png").rename(tmp_path / "photos" / "a.png")
    with pytest.raises(DataError, match="class folder"):
        run(tmp_path, weights, images=tmp_path / "photos")


def test_a_safetensors_file_without_labels(weights, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "student.safetensors"
    safetensors.save_file(torch.load(weights), path)
    folder, _ = run(tmp_path, path)
    (file,) = (folder / "bundle" / "web").rglob("fp32/model.onnx")
    assert len(json.loads(onnx_runtime.read_metadata(file)["labels"])) == len(CLASSES)


def test_a_runs_folder_is_not_overwritten(weights, tmp_path):
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / ".state").write_text("x")
    with pytest.raises(ConfigError, match="holds the results of a run"):
        run(tmp_path, weights, name="quick")


def test_published_weights_are_for_colour():
    with pytest.raises(ConfigError, match="colour images"):
        imported._of_hub("mobilenet_v2", imported.Origin(channels=1), None)  # pyright: ignore


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"origin": imported.Origin(size=SIZE, channels=1)}, ConfigError, "--arch"),
        (
            {"origin": imported.Origin(arch="mobilenet_v3_small", size=SIZE, channels=1)},
            CheckpointError,
            "does not fit mobilenet_v3_small",
        ),
        ({"overrides": ("export.onnx.opsett=18",)}, ConfigError, "opset"),
        ({"formats": ("onyx",)}, ConfigError, "no format is called `onyx`"),
        ({"images": Path("nowhere")}, DataError, "nowhere is no folder"),
    ],
)
def test_wrong_wishes_are_told(weights, tmp_path, change, kind, words):
    with pytest.raises(kind, match=words):
        run(tmp_path, weights, **change)


def test_a_label_list_of_the_wrong_length(weights, tmp_path):
    origin = imported.Origin(
        arch="mobilenet_v2", size=SIZE, channels=1, width=WIDTH, labels=("a", "b", "c", "d")
    )
    with pytest.raises(CheckpointError, match="3 classes, the image set has 4"):
        run(tmp_path, weights, origin=origin)


def test_images_of_other_classes(exported, weights, tmp_path):
    make_set(tmp_path / "images", train=4, test=4)
    (tmp_path / "images" / "test" / CLASSES[0]).rename(tmp_path / "images" / "test" / "zebra")
    origin = imported.Origin(
        arch="mobilenet_v2", size=SIZE, channels=1, width=WIDTH, labels=tuple(CLASSES)
    )
    with pytest.raises(DataError, match="no class called zebra"):
        run(tmp_path, weights, images=tmp_path / "images", origin=origin)


def test_a_loss_beyond_the_tolerance_ends_it_and_names_the_file(exported, weights, images):
    runs, _, _ = exported
    overrides = ("measure.profile=smoke", "quantize.calibration=minmax")
    strict = (*overrides, "export.onnx.max_difference=1e-9")
    with pytest.raises(VerificationError) as caught:
        run(runs, weights, images=images, overrides=strict, name="strict")
    assert "onnx int8: its answers are" in caught.value.message
    assert "export.onnx.max_difference" in caught.value.remedy
    assert not (runs / "strict").exists()


def test_the_command_says_what_is_wrong(tmp_path):
    line = [sys.executable, "-m", "pipeline", "export", str(tmp_path), "--runs", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "holds neither a run's report nor a checkpoint" in done.stderr
