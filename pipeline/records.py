"""The frozen facts that pass between stages: paths and numbers, never tensors.

``Dataset -> Checkpoint -> Quantized -> Artifact -> Measurement``, in that order. A record is
stored as ``record.json`` beside the files that it names; those names are relative to its
`folder`, which the store fills in, so that a store can be moved.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
"""Version of record.json and report.json. Raised when a field changes its meaning."""

Precision = Literal["fp32", "fp16", "int8", "w8a16", "w6a16", "w4a16"]
"""Of weights and arithmetic; w4a16 is 4-bit weights with float16 arithmetic."""
Platform = Literal["android", "ios", "nvidia", "web"]
"""Folders of the bundle."""
Scheme = Literal["u8s8", "u8s8-reduced", "s8s8", "u8u8"]
"""Types of activations and weights of an int8 graph for CPUs; see `quantization.place`."""
Role = Literal["teacher", "baseline", "student", "quantized"]


class Record(BaseModel):
    """Base of all records: frozen, strict, and comparable."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Result(Record):
    """A record that the store keeps: it knows its key and the folder its files lie in."""

    key: str = ""
    """Store key; set by the store."""
    folder: Path = Field(default=Path(), exclude=True)
    """Where the files named by this record lie; set by the store, never written to disk."""
    seconds: float = 0.0
    """How long the work took when it was done; set by the store."""

    @property
    def identity(self) -> str:
        """What a later stage's key says of this parent."""
        return self.key


class InputSpec(Record):
    """The input contract, fixed once by the data stage; everything after it obeys.

    An exported file takes uint8 images [batch, size, size, channels] as a phone has them and
    computes ``(x / 255 - mean) / std`` itself.
    """

    size: int
    """Height and width in pixels."""
    channels: Literal[1, 3]
    """1 is grey, 3 is RGB."""
    mean: tuple[float, ...]
    """Per channel, of values in 0..1, over the training split."""
    std: tuple[float, ...]
    """Per channel, of values in 0..1, over the training split."""
    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"


class Split(Record):
    """One part of an image set.

    `labels` is a .npy file of int64 [n]. The images are either `images`, a .npy file of uint8
    [n, size, size, channels], or `files`, a text file with one image path a line (JSON strings),
    to be decoded when they are needed.
    """

    n: int
    labels: str
    images: str | None = None
    files: str | None = None


class Dataset(Result):
    """A checked image set with its input contract and its three splits."""

    source: str
    """Where it came from, in words."""
    labels: tuple[str, ...]
    """Class names, in the order of the logits."""
    input: InputSpec
    crop_fraction: float = 1.0
    """Share of the centre square kept when an image file is decoded."""
    train: Split
    val: Split
    test: Split
    digest: str
    """SHA-256 over classes, contract, labels and pixels (streamed: files and Pillow's version)."""
    licence: str = "unknown"
    """Terms of the images."""

    @property
    def line(self) -> str:
        """In one line."""
        spec = self.input
        return (
            f"{self.source}: {len(self.labels)} classes, {self.train.n:,} training, "
            f"{self.val.n:,} validation and {self.test.n:,} test images, "
            f"{spec.size} px {'grey' if spec.channels == 1 else 'RGB'}"
        )

    @property
    def identity(self) -> str:
        """The content: the same images under another folder name are the same parent."""
        return self.digest


class Epoch(Record):
    """What one pass over the training split gave."""

    epoch: int
    loss: float
    """Mean training loss."""
    val_top1: float
    """Top-1 on the validation split."""
    seconds: float
    """Of training and validation."""
    learning_rate: float | None = None
    """Of the last step."""
    images_per_second: float | None = None
    """Of training alone."""
    memory_bytes: int | None = None
    """Most memory held meanwhile: of the GPU, else resident by the process."""


class Checkpoint(Result):
    """A trained network: its architecture and its weights file (a state dict, float32)."""

    role: Role
    arch: str
    width: float = 1.0
    stem_stride: int | None = None
    """Stride of the first convolution; None where the architecture decides."""
    labels: tuple[str, ...]
    input: InputSpec
    weights: str = "weights.pt"
    params: int
    """Number of trained parameters."""
    macs: int
    """Multiply-adds of one image, convolutions and linear layers."""
    device: str
    """Where it was trained, e.g. "cpu" or "cuda (NVIDIA H100)"."""
    precision: str = "float32"
    """Arithmetic of the forward pass in training."""
    start: str = "random"
    """What the weights were before: "random", or the file or hub they came from."""
    history: tuple[Epoch, ...] = ()

    @property
    def weights_path(self) -> Path:
        """The weights file."""
        return self.folder / self.weights

    @property
    def line(self) -> str:
        """In one line."""
        size = (
            f"{self.arch} ×{self.width:g}, {self.params:,} parameters, {self.macs / 1e6:.1f} M MACs"
        )
        if not self.history:
            return f"{size}, {self.device}"
        last = self.history[-1]
        words = f"validation {last.val_top1:.2%} after {last.epoch} epochs on {self.device}"
        if last.images_per_second and last.memory_bytes:
            speed, memory = last.images_per_second, last.memory_bytes / 1e6
            words += f", {speed:,.0f} images/s, at most {memory:,.0f} MB"
        return f"{size}: {words}"


class Answers(Result):
    """What a teacher says of one view of the training split."""

    view: int
    logits: str = "logits.npy"
    """.npy file of float16 [n, classes], in the order of the split."""

    @property
    def path(self) -> Path:
        """The file of logits."""
        return self.folder / self.logits


def artifact_title(artifact_format: str, precision: str, variant: str | None) -> str:
    """For people: "onnx int8 (symmetric)"."""
    return f"{artifact_format} {precision}" + (f" ({variant})" if variant else "")


class Artifact(Result):
    """One exported file (or folder) for one runtime, or the reason why there is none."""

    format: str
    precision: Precision
    variant: str | None = None
    file: str | None = None
    """Relative to `folder`; a directory for formats that are one."""
    bytes: int | None = None
    sha256: str | None = None
    """Of the file; of a directory, over its files' sorted names and contents."""
    extras: tuple[str, ...] = ()
    """Other files that belong to it, relative to `folder` (a build script, say)."""
    skipped: str | None = None
    """Why there is no file, in words; or what is missing of it."""
    platforms: tuple[Platform, ...] = ()
    """What it is for."""
    output: Literal["logits", "probabilities"] = "logits"
    """What it answers."""
    notes: tuple[str, ...] = ()
    """What somebody who ships it should know."""

    @property
    def line(self) -> str:
        """In one line."""
        size = f"{self.title}: {self.bytes / 1e6:.2f} MB" if self.bytes else f"{self.title}: none"
        return f"{size} ({self.skipped})" if self.skipped else size

    @property
    def path(self) -> Path:
        """The file. Raises ValueError where there is none."""
        if self.file is None:
            raise ValueError(f"{self.title} has no file: {self.skipped}")
        return self.folder / self.file

    @property
    def title(self) -> str:
        """For people, and what a `Variant.source` names it by."""
        return artifact_title(self.format, self.precision, self.variant)


class Accuracy(Record):
    """Top-1 over a whole split with its 95 % Wilson interval."""

    top1: float
    top1_ci95: tuple[float, float]
    n: int
    evaluated_with: str
    """Runtime and version, e.g. "onnxruntime 1.32.0"."""
    predictions: str
    """.npy file of float32 logits [n, classes], in the order of the test split."""


class Parity(Record):
    """How far an artifact's answers are from the float student's."""

    reference: Role = "student"
    max_abs_diff: float
    """Largest difference of any answer: of a logit, or of a probability where it gives those."""
    mean_abs_diff: float
    """Mean of the differences."""
    relative: float
    """Mean difference of logits, in standard deviations of the student's; where the file gives
    probabilities, of their logarithms, each image's less their mean."""
    top1_agreement: float
    """Share of images on which both name the same class."""
    n: int


class Latency(Record):
    """Batch-1 latency in a fresh process. `samples` are not stored here; see `raw`."""

    profile: str
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    """Timed inferences."""
    warmup: int
    """Inferences before the first timed one."""
    first_ms: float
    """The very first inference."""
    host: str
    """The processor that was measured on."""
    raw: str
    """.npy file of int64 nanoseconds [n]."""
    p50_ci95: tuple[float, float] | None = None
    """95 % interval of `p50_ms` within this process, by batch means; of several processes by order
    statistics (`benchmarks.steadiness`)."""
    noisy: str | None = None
    """Why p50 is not known as well as the profile asks for; None where it is."""
    overhead_ms: float | None = None
    """What the same way of measuring takes for an empty file; told where p50 is below 0.1 ms."""
    batch: int = 1
    """Images of one inference."""
    processes: int = 1
    """With more than one, each sample is a fresh process, from the file to its first answer."""
    in_force: dict[str, str] = {}
    """The options that runtime and system said they obeyed."""


APART = 0.2
"""Points of top-1 between two CPUs that count as different, if they are more than one image."""
OTHERWISE = 0.02
"""Share of images in another class that does, even where the differences cancel out."""


class CpuCheck(Record):
    """The same int8 file on another CPU, over the same images."""

    cpu: str
    """Such as "arm64 (qemu-aarch64)"."""
    scheme: Scheme | None = None
    """What was tried; None of a shipped file."""
    n: int = 0
    """Images; 0 where it could not be run."""
    top1: float | None = None
    host_top1: float | None = None
    """On this host, over the same images."""
    differs: float | None = None
    """Share of the images that get another class than on this host."""
    skipped: str | None = None
    """Why it could not be run."""

    @property
    def apart(self) -> float | None:
        """Points of top-1 between that CPU and this host."""
        if self.top1 is None or self.host_top1 is None:
            return None
        # Both are counts of so many images: what is between two of them is rounding.
        return round(100 * abs(self.top1 - self.host_top1), 6)

    @property
    def agrees(self) -> bool:
        """Whether that CPU answers as this host does, as far as it was run."""
        if self.apart is None or self.differs is None:
            return True
        near = self.apart <= max(APART, 100 / self.n)
        return near and self.differs <= OTHERWISE


class Measurement(Result):
    """What was measured of one model or artifact, or why it was not."""

    accuracy: Accuracy | None = None
    parity: Parity | None = None
    latency: Latency | None = None
    load_ms: float | None = None
    """From the file to a session that is ready, in a fresh process."""
    peak_rss_bytes: int | None = None
    """Largest resident memory of that process, runtime included."""
    operators_ms: dict[str, float] | None = None
    """Milliseconds an inference spends in each operator type, by ONNX Runtime's profiler."""
    cpus: tuple[CpuCheck, ...] = ()
    """The same file on other CPUs, over test images."""
    skipped: str | None = None
    """Why it was not executed here, or what its execution here does not show."""

    @property
    def line(self) -> str:
        """In one line."""
        parts = []
        if self.accuracy is not None:
            parts.append(f"top-1 {self.accuracy.top1:.2%} of {self.accuracy.n:,} images")
        if self.latency is not None:
            parts.append(f"p50 {self.latency.p50_ms:.3f} ms")
        return ", ".join(parts) or f"not executed here: {self.skipped}"
