"""A small run's records with real predictions, from which tests build reports."""

from pathlib import Path

import numpy as np

from benchmarks.stats import paired_difference, wilson
from pipeline import assemble, summary
from pipeline.images import open_split
from pipeline.quantized import (
    Calibration,
    Fused,
    Island,
    LayerLoss,
    Quantized,
    Rescue,
    Sensitivity,
    Trial,
)
from pipeline.records import (
    Accuracy,
    Artifact,
    Checkpoint,
    CpuCheck,
    Dataset,
    Epoch,
    InputSpec,
    Latency,
    Measurement,
    Parity,
    Scheme,
    Split,
)

LABELS = ("shirt", "boot", "bag")
SPEC = InputSpec(size=8, channels=1, mean=(0.28,), std=(0.35,))
HOST = "Example CPU, 2 cores, x86_64"


PLAIN = Quantized(
    calibration=Calibration(method="minmax", images=512),
    fused=Fused(
        operators={"QLinearConv": 52, "QLinearAdd": 10, "QGemm": 1},
        integer_macs=6_500_000,
        float_macs=0,
    ),
)
"""What the quantize stage found out at the least."""
ARM = "onnxruntime 1.32.0 on arm64 (qemu-aarch64 7.2.22, cortex-a76)"
HASWELL = "onnxruntime 1.32.0 on Haswell (qemu-x86_64 7.2.22)"
NOT_FETCHED = (
    "not fetched into /cache/emulators. python -m pipeline fetch emulators (needs Debian's "
    "apt-get; about 140 MB)"
)


class SmallRun:
    """The records of one run in `folder`, with real predictions; `report` builds its report."""

    def __init__(self, folder: Path, n: int = 1200, labels=LABELS, host=HOST, seed=0):
        self.folder, self.host, self.names, self.n = folder, host, labels, n
        self.truth = np.random.default_rng(5).integers(0, len(labels), n)
        self.rng = np.random.default_rng(seed)
        self.models, self.artifacts, self.others = [], [], {}
        self.quantized = PLAIN
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.pt").write_bytes(bytes(8_000))
        np.save(folder / "labels.npy", self.truth)
        pixels = np.random.default_rng(6).integers(0, 256, (n, SPEC.size, SPEC.size, 1), np.uint8)
        np.save(folder / "images.npy", pixels)
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
            apart = np.abs(student - logits)
            parity = Parity(
                max_abs_diff=float(apart.max()),
                mean_abs_diff=float(apart.mean()),
                relative=float(apart.mean() / student.std()),
                top1_agreement=float(same.mean()),
                n=self.n,
            )
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
                Epoch(
                    epoch=e,
                    loss=1 / e,
                    val_top1=1 - 0.5 / e,
                    seconds=2.0,
                    images_per_second=2500.0,
                    memory_bytes=810_000_000 + e,
                )
                for e in range(1, epochs + 1)
            ),
        )
        checkpoint = checkpoint.model_copy(update=more)
        self.models.append((checkpoint, self.measured(role, logits, p50)))
        return logits

    def add_seed(self, seed, **wrong):
        """Networks of another seed, each with so many `wrong` images; the others are of seed 0."""
        student = self.models[-1][0]
        self.others[seed] = [
            (
                student.model_copy(update={"role": role, "key": f"{role}-{seed}"}),
                self.measured(f"{role}-{seed}", self.logits(count), 9.0, latency=None),
            )
            for role, count in wrong.items()
        ]

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
            "gain": paired_difference(right["baseline"], right["student"])
            if "baseline" in right
            else None,
            "command": "python -m pipeline run pipeline/configs/quick.toml",
            "date": "2026-01-02T03:04:05+00:00",
            "quantized": self.quantized,
            "test_labels": self.truth,
            "test_images": open_split(self.dataset, "test") if self.dataset.test.images else None,
            "seeds": self.others and {0: self.models, **self.others},
        }
        return assemble.build(
            dataset=self.dataset, models=self.models, artifacts=self.artifacts, **(facts | more)
        )


def usual_run(folder: Path, **more) -> SmallRun:
    """Three models, ONNX in float and int8, one file that cannot run here, one that is missing."""
    run = SmallRun(folder, **more)
    run.add_model("teacher", 60, 40.0)
    run.add_model("baseline", 130, 9.0)
    student = run.add_model("student", 100, 9.0)
    here = {"platforms": ("android", "web")}
    run.add_artifact("onnx", "fp32", 8_900_000, run.measured("a", student, 3.0, student), **here)
    int8 = run.logits(0, base=student, flips=6)
    run.add_artifact("onnx", "int8", 2_400_000, run.measured("b", int8, 1.3, student), **here)
    unseen = Measurement(skipped="needs macOS")
    run.add_artifact("coreml", "fp16", 4_500_000, unseen, platforms=("ios",))
    none = {"skipped": "needs a GPU to build", "platforms": ("nvidia",)}
    run.add_artifact("tensorrt", "int8", None, Measurement(), **none)
    return run


def run_of_seeds(folder: Path, **more) -> SmallRun:
    """The usual run with seeds 0, 1 and 7: gains of 2.5, 2 and 3 points."""
    run = usual_run(folder, **more)
    run.add_seed(1, baseline=130, student=106)
    run.add_seed(7, baseline=128, student=92)
    return run


def studied(layers: int = 3, **more) -> Quantized:
    """What the quantize stage found out with all its parts switched on."""
    names = [f"node_Conv_{810 + 2 * i}" for i in range(layers)]
    losses = [
        LayerLoss(layer=name, macs=10_000 * (i + 1), snr_db=24.0 + (7 * i % 11) / 4, val_top1=0.89)
        for i, name in enumerate(names)
    ]
    tried = {"minmax": (0.874, 0.97), "percentile": (0.886, 0.985), "fine-tuned": (0.892, 0.99)}
    facts = {
        "calibration": Calibration(method="percentile", images=512),
        "float_val_top1": 0.89,
        "trials": tuple(
            Trial(name=name, val_top1=top1, agreement=agreement, kept=name == "fine-tuned")
            for name, (top1, agreement) in tried.items()
        ),
        "fused": PLAIN.fused.model_copy(
            update={
                "float_macs": 700,
                "islands": (
                    *[Island(operators=("HardSigmoid",), reason="there is no 8-bit kernel")] * 3,
                    Island(operators=("Mul", "Mul", "Add"), reason="its inputs are not quantized"),
                ),
            }
        ),
        "sensitivity": Sensitivity(
            n=256, float_top1=0.9, int8_top1=0.875, int8_snr_db=24.25, layers=tuple(losses)
        ),
        "notes": ("node_Conv_810: the bias of 2 of 16 channels would not fit",),
    }
    return Quantized(**facts | more)


def rescued(drop: float = 0.4) -> Rescue:
    """A mix with two layers in float that loses `drop` points where 0.5 were allowed."""
    return Rescue(
        max_drop=0.5,
        drop_before=1.3,
        drop=drop,
        float_layers=("node_Conv_812", "node_Conv_814"),
        tried=9,
        latency_ratio=1.21,
        bytes_before=2_400_000,
        bytes=2_560_000,
    )


def check(cpu: str, top1: float, differs: float = 0.003, scheme: Scheme | None = None) -> CpuCheck:
    """1,000 images on another CPU, of which this host names 90 % rightly."""
    return CpuCheck(cpu=cpu, scheme=scheme, n=1000, top1=top1, host_top1=0.9, differs=differs)


def skipped(*cpus: str) -> tuple[CpuCheck, ...]:
    """What stands for CPUs that were not fetched."""
    return tuple(CpuCheck(cpu=cpu, skipped=NOT_FETCHED) for cpu in cpus)


def studied_run(folder: Path, *checks: CpuCheck, quantized: Quantized | None = None) -> SmallRun:
    """The usual run, its int8 graph studied, its int8 file with `checks` on other CPUs."""
    run = usual_run(folder)
    run.quantized = quantized or studied()
    artifact, found, place = run.artifacts[1]
    run.artifacts[1] = (artifact, found.model_copy(update={"cpus": checks}), place)
    return run
