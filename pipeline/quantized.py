"""What the quantize stage found out: the int8 graphs, how they came about, and what they lose.

Parts of `pipeline.records`, in a room of their own. Accuracies here are of the validation split:
they choose; the test split is only ever measured.
"""

from pipeline.records import CpuCheck, Record, Result, Scheme

REMEDIES: tuple[Scheme, ...] = ("u8u8", "u8s8-reduced")
"""Schemes without 16-bit sums of full 8-bit products, which not every CPU has room for."""


class Calibration(Record):
    """How the ranges of the activations were found."""

    method: str
    """The one that was kept: "minmax", "percentile", "entropy" or "mse"."""
    images: int
    """Number of training images seen."""


class Trial(Record):
    """One int8 graph that was tried, and what it gave on the validation split."""

    name: str
    """The calibration method; "fine-tuned" for the graph whose weights were trained on."""
    val_top1: float
    agreement: float
    """Share of validation images on which it names the same class as the float student."""
    kept: bool = False
    """Whether it is the one that is shipped."""


class Island(Record):
    """Operators that stay float between integer ones: values are converted there and back."""

    operators: tuple[str, ...]
    """Types, in order."""
    reason: str


class Fused(Record):
    """What ONNX Runtime really runs on this CPU, after its fusions."""

    operators: dict[str, int]
    """How often each type stands in the graph."""
    integer_macs: int
    """Multiply-adds of one image in integer kernels."""
    float_macs: int
    islands: tuple[Island, ...] = ()

    @property
    def integer_share(self) -> float:
        """Share of the multiply-adds that run in integer kernels; 1.0 where there are none."""
        total = self.integer_macs + self.float_macs
        return self.integer_macs / total if total else 1.0

    @property
    def line(self) -> str:
        """In one line."""
        found = "no float island" if not self.islands else f"{len(self.islands)} float islands"
        if len(self.islands) == 1:
            found = "1 float island"
        return f"{self.integer_share:.1%} of the multiply-adds in integer kernels, {found}"


class LayerLoss(Record):
    """What one layer costs: the int8 graph with this layer alone in float."""

    layer: str
    macs: int
    """Multiply-adds of one image."""
    snr_db: float
    """Signal of the float student's logits to their difference, in decibels."""
    val_top1: float


class Sensitivity(Record):
    """Which layer loses how much, on some of the validation images."""

    n: int
    """Images."""
    float_top1: float
    int8_top1: float
    int8_snr_db: float
    layers: tuple[LayerLoss, ...]
    """In the order of the network."""


class Rescue(Record):
    """The search for the cheapest mix of int8 and float layers that keeps the accuracy."""

    max_drop: float
    """Points of top-1 on the validation split that were allowed."""
    drop_before: float
    """Points, all layers int8."""
    drop: float
    """Points, of the mix that is shipped."""
    float_layers: tuple[str, ...]
    """Layers of that mix that stay float."""
    tried: int
    """Graphs that were evaluated."""
    latency_ratio: float
    """Median latency of the mix on this host in medians of the graph with all layers int8."""
    bytes_before: int
    bytes: int


class Quantized(Result):
    """The student's ONNX graphs with explicit Q/DQ, before they are dressed for shipping."""

    int8: str = "int8.onnx"
    """For CPU runtimes."""
    int8_symmetric: str = "int8-symmetric.onnx"
    """int8 activations and weights with zero point 0 and float biases: for TensorRT."""
    weights: str = "ready.onnx"
    """The float graph with the weights that were rounded."""
    images: str = "calibration.npy"
    """The calibration images, uint8 [n, size, size, channels], for formats that calibrate anew."""
    scheme: Scheme = "u8s8"
    """Types of `int8`."""
    calibration: Calibration
    float_val_top1: float | None = None
    """Of the float student, for comparison with the trials."""
    trials: tuple[Trial, ...] = ()
    fused: Fused
    """Of `int8`."""
    sensitivity: Sensitivity | None = None
    rescue: Rescue | None = None
    checks: tuple[CpuCheck, ...] = ()
    """On validation images, for each scheme that was tried; they chose the scheme."""
    notes: tuple[str, ...] = ()
    """What had to be mended, in words."""

    @property
    def line(self) -> str:
        """In one line."""
        method, images = self.calibration.method, self.calibration.images
        kept = next((trial for trial in self.trials if trial.kept), None)
        how = "fine-tuned, " if kept and kept.name == "fine-tuned" else ""
        top1 = f", validation {kept.val_top1:.2%}" if kept else ""
        return (
            f"{self.scheme}, {how}ranges by {method} from {images} images{top1}; {self.fused.line}"
        )
