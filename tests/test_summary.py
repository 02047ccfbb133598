"""report.json: built from real small records, and read back."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stats import paired_difference, wilson
from pipeline import summary
from pipeline.errors import StoreError
from pipeline.records import (
    Accuracy,
    Artifact,
    Calibration,
    Checkpoint,
    Dataset,
    Epoch,
    InputSpec,
    Latency,
    Measurement,
    Parity,
    Quantized,
    Split,
)

LABELS = ("shirt", "boot", "bag")
SPEC = InputSpec(size=8, channels=1, mean=(0.28,), std=(0.35,))
HOST = "Example CPU, 2 cores, x86_64"


class SmallRun:
    """The records of one run in `folder`, with real predictions; `report` builds its report."""

    def __init__(self, folder: Path, n: int = 1200, labels=LABELS, host=HOST, seed=0):
        self.folder, self.host, self.names, self.n = folder, host, labels, n
        self.truth = np.random.default_rng(5).integers(0, len(labels), n)
        self.rng = np.random.default_rng(seed)
        self.models, self.artifacts = [], []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.pt").write_bytes(bytes(8_000))
        np.save(folder / "labels.npy", self.truth)
        np.save(folder / "images.npy", np.arange(n, dtype=np.uint8))
        test = Split(n=n, labels="labels.npy", images="images.npy")
        self.dataset = Dataset(
            key="d0",
            folder=folder,
            source="three kinds of things",
            labels=labels,
            input=SPEC,
            train=test.model_copy(update={"n": 5000}),
            val=test.model_copy(update={"n": 500}),
            test=test,
            digest="d1" * 32,
            licence="MIT",
        )

    def logits(self, wrong: int, base=None, flips: int = 0) -> np.ndarray:
        """Logits that name the first `wrong` images wrongly; or `base`'s, `flips` of them moved."""
        if base is None:
            named = self.truth.copy()
            named[:wrong] = (named[:wrong] + 1) % len(self.names)
        else:
            named = base.argmax(axis=1)
            moved = self.rng.choice(self.n, flips, replace=False)
            named[moved] = (named[moved] + 1) % len(self.names)
        logits = self.rng.normal(0, 0.1, (self.n, len(self.names))).astype(np.float32)
        logits[np.arange(self.n), named] += 4
        return logits

    def measured(self, name, logits, p50, student=None, **more) -> Measurement:
        np.save(self.folder / f"{name}.npy", logits)
        hits = int((logits.argmax(axis=1) == self.truth).sum())
        accuracy = Accuracy(
            top1=hits / self.n,
            top1_ci95=wilson(hits, self.n),
            n=self.n,
            evaluated_with="onnxruntime 1.32.0",
            predictions=f"{name}.npy",
        )
        same = None if student is None else student.argmax(1) == logits.argmax(1)
        parity = None
        if student is not None and same is not None:
            gap = float(np.abs(student - logits).max())
            parity = Parity(max_abs_diff=gap, top1_agreement=float(same.mean()), n=self.n)
        latency = Latency(
            profile="phone-1t",
            threads=1,
            p50_ms=p50,
            p90_ms=1.1 * p50,
            p99_ms=1.3 * p50,
            n=512,
            warmup=64,
            first_ms=3 * p50,
            host=self.host,
            raw="raw.npy",
        )
        fields = {"accuracy": accuracy, "parity": parity, "latency": latency, "load_ms": 12.0}
        fields |= {"peak_rss_bytes": 61_000_000, "folder": self.folder} | more
        return Measurement(**fields)

    def add_model(self, role, wrong, p50, epochs=3, **more):
        logits = self.logits(wrong)
        checkpoint = Checkpoint(
            key=f"{role}-key",
            folder=self.folder,
            role=role,
            arch="mobilenet_v2",
            labels=self.names,
            input=SPEC,
            params=2_236_682,
            macs=6_500_000,
            device="cpu",
            history=tuple(
                Epoch(epoch=e, loss=1 / e, val_top1=1 - 0.5 / e, seconds=2.0)
                for e in range(1, epochs + 1)
            ),
        )
        checkpoint = checkpoint.model_copy(update=more)
        self.models.append((checkpoint, self.measured(role, logits, p50)))
        return logits

    def add_artifact(self, name, precision, size, found, variant=None, **more):
        artifact = Artifact(
            key=f"{name}-{precision}",
            folder=self.folder,
            format=name,
            precision=precision,
            variant=variant,
            file=f"{name}.bin" if size else None,
            bytes=size,
            sha256="ab" * 32 if size else None,
        ).model_copy(update=more)
        place = f"{name}-{precision}.bin" if size else None
        self.artifacts.append((artifact, found, place))

    def report(self, **more) -> summary.Report:
        right = {
            checkpoint.role: np.load(found.folder / found.accuracy.predictions).argmax(1)
            == self.truth
            for checkpoint, found in self.models
            if found.accuracy is not None
        }
        facts = {
            "run": "quick",
            "seconds": {"teach": 71.2, "distill": 64.0},
            "environment": {"cpu": self.host, "torch": "2.14.1", "coremltools": None},
            "settings": {"seed": 0, "distill": {"temperature": 4.0, "loss": "kd"}},
            "gain": paired_difference(right["baseline"], right["student"]),
            "command": "python -m pipeline run pipeline/configs/quick.toml",
            "date": "2026-01-02T03:04:05+00:00",
            "quantized": Quantized(
                calibration=Calibration(method="minmax", images=512),
                operators={"QLinearConv": 52, "QLinearAdd": 10, "ReduceMean": 1},
            ),
            "test_labels": self.truth,
        }
        return summary.build(
            dataset=self.dataset, models=self.models, artifacts=self.artifacts, **(facts | more)
        )


def usual_run(folder: Path, **more) -> SmallRun:
    """Three models, ONNX in float and int8, one file that cannot run here, one that is missing."""
    run = SmallRun(folder, **more)
    run.add_model("teacher", 60, 40.0)
    run.add_model("baseline", 130, 9.0)
    student = run.add_model("student", 100, 9.0)
    run.add_artifact("onnx", "fp32", 8_900_000, run.measured("a", student, 3.0, student))
    int8 = run.logits(0, base=student, flips=6)
    run.add_artifact("onnx", "int8", 2_400_000, run.measured("b", int8, 1.3, student))
    run.add_artifact("coreml", "fp16", 4_500_000, Measurement(skipped="needs macOS"))
    run.add_artifact("tensorrt", "int8", None, Measurement(), skipped="needs a GPU to build")
    return run


@pytest.fixture
def run(tmp_path):
    return usual_run(tmp_path / "records")


def test_names_of_the_schema_are_present(run):
    body = json.loads(run.report().to_json())
    for name in ("schema", "run", "seconds", "environment", "input", "labels", "models"):
        assert name in body
    assert body["schema"] == 1
    assert body["input"]["layout"] == "NHWC" and body["input"]["dtype"] == "uint8"
    assert {"role", "arch", "params", "macs", "top1", "top1_ci95", "n", "key"} <= set(
        body["models"][0]
    )
    onnx = body["artifacts"][0]
    assert {"format", "precision", "variant", "path", "bytes", "sha256", "skipped"} <= set(onnx)
    assert {"evaluated_with", "load_ms", "peak_rss_bytes", "top1", "top1_ci95", "n"} <= set(onnx)
    assert {"reference", "max_abs_diff", "top1_agreement", "n"} <= set(onnx["parity"])
    assert {"profile", "p50_ms", "p90_ms", "p99_ms", "n", "warmup"} <= set(onnx["latency"])
    assert onnx["path"] == "bundle/onnx-fp32.bin"


def test_written_and_read_back_is_the_same(run, tmp_path):
    report = run.report()
    (tmp_path / "report.json").write_text(report.to_json())
    assert summary.read(tmp_path) == report
    assert summary.read(tmp_path / "report.json") == report


def test_correctness_survives_packing(run):
    for row, (_, found) in zip(run.report().models, run.models, strict=True):
        named = np.load(found.folder / found.accuracy.predictions).argmax(axis=1)
        np.testing.assert_array_equal(row.correctness(), named == run.truth)
        assert row.correctness().mean() == pytest.approx(row.top1)


def test_class_accuracies_are_those_of_the_predictions(run):
    report = run.report()
    student = report.model("student")
    right = student.correctness()
    expected = [right[run.truth == index].mean() for index in range(len(LABELS))]
    assert student.class_top1 == pytest.approx(expected)
    assert report.dataset.class_counts == tuple(np.bincount(run.truth))


def test_a_class_without_test_images_has_no_accuracy(tmp_path):
    run = SmallRun(tmp_path, labels=(*LABELS, "unseen"))
    run.truth[run.truth == 3] = 0
    run.add_model("baseline", 5, 9.0)
    run.add_model("student", 4, 9.0)
    by_class = run.report().models[-1].class_top1
    assert by_class is not None and by_class[0] is not None and by_class[3] is None


def test_agreement_is_with_the_student(run):
    report = run.report()
    assert report.model("student").agreement == 1.0
    assert report.model("teacher").agreement == pytest.approx(1 - 40 / 1200)
    assert report.artifacts[1].agreement == pytest.approx(1 - 6 / 1200)


def test_without_test_labels_there_is_no_detail(run):
    report = run.report(test_labels=None)
    assert report.model("student").top1 is not None
    assert report.model("student").correctness() is None
    assert report.dataset.class_counts is None


def test_reasons_of_export_and_of_measuring_are_both_kept(run):
    run.add_artifact("ort", "int8", 10, Measurement(skipped="no runtime"), skipped="half done")
    rows = {row.title: row for row in run.report().artifacts}
    assert rows["coreml fp16"].skipped == "needs macOS"
    assert rows["tensorrt int8"].skipped == "needs a GPU to build"
    assert rows["tensorrt int8"].path is None
    assert rows["ort int8"].skipped == "half done; no runtime"


def test_labels_of_another_test_set_are_refused(run):
    with pytest.raises(StoreError, match="1200 predictions for 3 test labels"):
        run.report(test_labels=run.truth[:3])
    with pytest.raises(StoreError, match="its record says"):
        run.report(test_labels=(run.truth + 1) % 3)


def test_what_is_not_a_number_becomes_null(run, tmp_path):
    student = run.logits(100)
    found = run.measured("c", student, 2.0, student)
    broken = Parity(max_abs_diff=float("nan"), top1_agreement=1.0, n=1200)
    run.add_artifact("ort", "fp16", 10, found.model_copy(update={"parity": broken}))
    checkpoint, measured = run.models[0]
    history = (Epoch(epoch=1, loss=float("inf"), val_top1=0.1, seconds=1.0),)
    run.models[0] = (checkpoint.model_copy(update={"history": history}), measured)
    (tmp_path / "report.json").write_text(run.report().to_json())
    report = summary.read(tmp_path)
    parity = report.artifacts[-1].parity
    assert parity is not None and parity.max_abs_diff is None
    assert report.models[0].history[0].loss is None


def test_the_test_digest_covers_the_test_split_only(run):
    before = run.report().dataset.test_digest
    run.dataset = run.dataset.model_copy(update={"digest": "e2" * 32})
    assert run.report().dataset.test_digest == before
    np.save(run.folder / "images.npy", np.arange(run.n, dtype=np.uint8)[::-1])
    assert run.report().dataset.test_digest != before


def test_a_streamed_test_split_is_covered_by_the_whole_digest(run):
    streamed = run.dataset.test.model_copy(update={"images": None, "files": "files.txt"})
    run.dataset = run.dataset.model_copy(update={"test": streamed})
    before = run.report().dataset.test_digest
    run.dataset = run.dataset.model_copy(update={"digest": "e2" * 32})
    assert run.report().dataset.test_digest != before


def test_int8_is_paired_with_the_float_file_of_its_format(run):
    student = run.logits(100)
    run.add_artifact("coreml", "int8", 10, run.measured("c", student, 2.0, student))
    titles = [(a.title, b.title) for a, b in run.report().int8_pairs()]
    assert titles == [("onnx fp32", "onnx int8"), ("coreml fp16", "coreml int8")]


def test_a_missing_report_names_the_run(tmp_path):
    (tmp_path / "quick").mkdir()
    with pytest.raises(StoreError, match="run 'quick' has no report"):
        summary.read(tmp_path / "quick")
    with pytest.raises(StoreError, match="run 'quick' has no report"):
        summary.read(tmp_path / "quick" / "report.json")


def test_a_damaged_report_names_the_run(run, tmp_path):
    home = tmp_path / "quick"
    home.mkdir()
    (home / "report.json").write_text(run.report().to_json()[:500])
    with pytest.raises(StoreError, match="report of run 'quick' is damaged"):
        summary.read(home)
    (home / "report.json").write_text("[1, 2]")
    with pytest.raises(StoreError, match="report of run 'quick' cannot be used"):
        summary.read(home)


def test_a_newer_schema_is_refused_before_its_content(tmp_path):
    home = tmp_path / "quick"
    home.mkdir()
    (home / "report.json").write_text('{"schema": 2, "rows": []}')
    with pytest.raises(StoreError, match="'quick' has schema 2; this version reads 1") as caught:
        summary.read(home)
    assert "Update this clone" in caught.value.remedy


def test_a_field_of_the_wrong_type_is_named(run, tmp_path):
    body = json.loads(run.report().to_json())
    body["models"][0]["top1"] = "high"
    (tmp_path / "report.json").write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"models\.0\.top1"):
        summary.read(tmp_path)


def test_fields_added_later_are_ignored(run, tmp_path):
    body = json.loads(run.report().to_json())
    body["phone"] = {"model": "x"}
    body["models"][0]["energy_mj"] = 3
    (tmp_path / "report.json").write_text(json.dumps(body))
    assert summary.read(tmp_path) == run.report()
