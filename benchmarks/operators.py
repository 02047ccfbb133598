"""Where an inference of an ONNX file spends its time: milliseconds by operator type.

ONNX Runtime's own profiler tells it, in a fresh process that does nothing else, while this one
waits. Run as a module it is that process.

Not to be read as latencies. Profiling itself adds to each operator (some 3 µs), so that the sum
over a tiny network is several times its latency; the profiler counts whole microseconds; and what
ONNX Runtime does between operators is in no sum at all. Two files profiled alike still show what
one of them spends more on. Each type has a median of its own, so that an interruption, which hits
one operator of an inference, does not count.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.latency import in_fresh_process
from benchmarks.profiles import Profile
from runtime.onnx_runtime import PROVIDER, quiet_import

SECONDS = 0.5
"""After its warm-up a file is profiled for so long ..."""
RUNS = range(5, 101)
"""... but with at least and at most so many inferences: each operator of each writes an event."""

KERNEL = "_kernel_time"
"""At the end of the name of an event that is an operator's computation."""
CONVERSIONS = "conversions between float and int8"
_FAMILIES = {
    "convolutions": "Conv FusedConv QLinearConv ConvInteger NhwcFusedConv",
    "matrix products": "Gemm FusedGemm QGemm MatMul FusedMatMul QLinearMatMul MatMulInteger",
    CONVERSIONS: "QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
    "multiplications": "Mul QLinearMul",
    "additions": "Add QLinearAdd Sum",
    "activations": "Relu LeakyRelu QLinearLeakyRelu PRelu Clip Sigmoid QLinearSigmoid HardSigmoid "
    "HardSwish Tanh Elu Erf Gelu FastGelu QuickGelu",
    "pooling": "GlobalAveragePool QLinearGlobalAveragePool AveragePool QLinearAveragePool "
    "ReduceMean QLinearReduceMean MaxPool NhwcMaxPool GlobalMaxPool",
    "layout": "ReorderInput ReorderOutput Transpose Reshape Flatten Squeeze Unsqueeze Cast",
}
_FAMILY = {kind: family for family, kinds in _FAMILIES.items() for kind in kinds.split()}


def families(operators_ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds by what operators do, so that a float and an int8 file compare.

    A type that belongs to no family stays as it is.
    """
    found: dict[str, float] = defaultdict(float)
    for kind, spent in operators_ms.items():
        found[_FAMILY.get(kind, kind)] += spent
    return dict(found)


class Spent(BaseModel):
    """Where the time of one file goes: median milliseconds an inference, the costliest first."""

    model_config = ConfigDict(frozen=True)

    types: dict[str, float]
    """By operator type, as ONNX Runtime runs them after its fusions."""
    nodes: dict[str, float]
    """By operator: type and name, "Conv features.0.0_nchwc"."""


def measure(path: Path, images: NDArray[np.uint8], profile: Profile) -> Spent:
    """What an inference of the file at `path` spends its time on.

    `images` are uint8 [n, size, size, channels], taken one at a time. Of the `profile` threads and
    warm-up count. Raises `PipelineError` with the child's last words where it fails.
    """
    told = in_fresh_process(
        "benchmarks.operators",
        [str(path.resolve()), profile.model_dump_json(), json.dumps(images.shape)],
        images,
        f"profiling {path}",
    )
    return Spent.model_validate_json(told)


def main() -> None:
    """The fresh process."""
    path, profile = sys.argv[1], Profile.model_validate_json(sys.argv[2])
    shape = tuple(json.loads(sys.argv[3]))
    pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(shape)
    images = [pixels[i : i + 1] for i in range(len(pixels))]
    with tempfile.TemporaryDirectory() as folder:
        events = profiled(path, images, profile, Path(folder))
    by_node = list(runs(events))[profile.warmup :]
    types = [summed(run, lambda name: name.partition(" ")[0]) for run in by_node]
    print(Spent(types=medians(types), nodes=medians(by_node)).model_dump_json())


def profiled(
    path: str, images: Sequence[NDArray[np.uint8]], profile: Profile, folder: Path
) -> list[dict[str, Any]]:
    """The profiler's events, warm-up included."""
    ort = quiet_import()
    options = ort.SessionOptions()  # as in runtime.onnx_runtime, so that the same graph runs
    options.intra_op_num_threads = profile.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(path, options, providers=[PROVIDER])
    assert session.get_providers() == [PROVIDER]
    name = session.get_inputs()[0].name
    for i in range(profile.warmup):
        session.run(None, {name: images[i % len(images)]})
    until = time.perf_counter_ns() + int(SECONDS * 1e9)
    for i in range(RUNS[-1]):
        if i >= RUNS[0] and time.perf_counter_ns() > until:
            break
        session.run(None, {name: images[i % len(images)]})
    return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))


def runs(events: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, int]]:
    """Microseconds by type and name of the operator, inference by inference."""
    spent: dict[str, int] = defaultdict(int)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(KERNEL):
            name = event["name"].removesuffix(KERNEL)
            spent[f"{event['args']['op_name']} {name}"] += event["dur"]
        elif event["name"] == "model_run":  # written when an inference ends, after its operators
            yield dict(spent)
            spent.clear()


def summed(run: Mapping[str, int], key: Callable[[str], str]) -> dict[str, int]:
    """The microseconds of one inference, added up over what has the same `key`."""
    found: dict[str, int] = defaultdict(int)
    for name, spent in run.items():
        found[key(name)] += spent
    return dict(found)


def medians(found: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Median milliseconds of each key over inferences, the costliest first."""
    kinds = {kind for run in found for kind in run}
    spent = {kind: median(run.get(kind, 0) for run in found) / 1000 for kind in kinds}
    return dict(sorted(spent.items(), key=lambda item: (-item[1], item[0])))


if __name__ == "__main__":
    main()
