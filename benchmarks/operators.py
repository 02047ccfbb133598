"""Where an inference of an ONNX file spends its time: milliseconds by operator type.

ONNX Runtime's own profiler tells it, in a fresh process that does nothing else, while this one
waits. Run as a module it is that process.

Not to be read as latencies. Profiling itself adds to each operator (some 3 µs), so that the sum
over a tiny network is several times its latency; the profiler counts whole microseconds; and what
ONNX Runtime does between operators is in no sum at all. Two files profiled alike still show what
one of them spends more on. Each type has a median of its own, so that an interruption, which hits
one operator of an inference, does not count.

Session and process are those of `benchmarks.worker`, so that the graph is the one that is timed.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.latency import in_fresh_process, passing_on
from benchmarks.profiles import Profile, cpus
from benchmarks.worker import limit_memory, settle
from pipeline.machine import cores
from runtime import onnx_runtime
from runtime.onnx_runtime import OrtSession

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
    in_force: dict[str, str] = {}
    """The options that session and system say they obey, by name."""


class _Told(BaseModel):
    """What the fresh process tells."""

    in_force: dict[str, str]
    single: bool
    """Whether the file takes a batch as so many inferences of one image."""
    events: list[dict[str, Any]]


def measure(path: Path, images: NDArray[np.uint8], profile: Profile) -> Spent:
    """What an inference of the file at `path` spends its time on.

    `images` are uint8 [n, size, size, channels]; as many are taken at a time as the `profile` says.
    All of it holds but for how long is measured: see `SECONDS` and `RUNS`. Raises `PipelineError`
    with the child's last words where it fails.
    """
    line = in_fresh_process(
        "benchmarks.operators",
        [str(path.resolve()), profile.model_dump_json(), json.dumps(images.shape)],
        images,
        f"profiling {path}",
        memory_limit_mb=profile.memory_limit_mb,
    )
    told = _Told.model_validate_json(line)
    each = profile.batch if told.single else 1
    by_node = list(together(runs(told.events), each))[profile.warmup :]
    types = [summed(run, lambda name: name.partition(" ")[0]) for run in by_node]
    return Spent(types=medians(types), nodes=medians(by_node), in_force=told.in_force)


def main() -> None:
    """The fresh process."""
    path, profile = Path(sys.argv[1]), Profile.model_validate_json(sys.argv[2])
    with passing_on():
        tell(path, profile, tuple(json.loads(sys.argv[3])))


def tell(path: Path, profile: Profile, shape: tuple[int, ...]) -> None:
    """Print what is `_Told` of the file at `path`, on the images from standard input.

    The events are handed on unread: read, they would need more than a memory limit may leave.
    """
    settle(profile)
    pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(shape)
    onnx_runtime.warm_import()
    if profile.memory_limit_mb:
        limit_memory(profile.memory_limit_mb)
    with tempfile.TemporaryDirectory() as folder:
        session = opened(path, profile, Path(folder))
        infer(session, pixels, profile)
        written = session.end_profiling()
        in_force = session.in_force | {"cpus": ",".join(map(str, sorted(cpus())))}
        head = {"in_force": in_force, "single": session.single}
        sys.stdout.write(json.dumps(head).removesuffix("}") + ', "events": ')
        with written.open(encoding="utf-8") as lines:
            for line in lines:
                sys.stdout.write(line.rstrip())
        print("}")


def opened(path: Path, profile: Profile, folder: Path) -> OrtSession:
    """A session as `benchmarks.worker` has it, whose events are written into `folder`."""
    return onnx_runtime.open_tuned(
        path,
        profile.threads or cores(),
        arena=profile.arena,
        spinning=profile.spinning,
        optimization=profile.graph_optimization,
        profiling=folder / "profile",
    )


def infer(session: OrtSession, pixels: NDArray[np.uint8], profile: Profile) -> None:
    """Run `session` on batches of the images, in turn: to warm up, then for `SECONDS`."""
    starts = [np.arange(at, at + profile.batch) for at in range(0, len(pixels), profile.batch)]
    batches = [session.prepared(pixels[rows % len(pixels)]) for rows in starts]
    for at in range(profile.warmup):
        session.run(batches[at % len(batches)])
    until = time.perf_counter_ns() + int(SECONDS * 1e9)
    for at in range(RUNS[-1]):
        if at >= RUNS[0] and time.perf_counter_ns() > until:
            break
        session.run(batches[at % len(batches)])


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


def together(found: Iterable[Mapping[str, int]], each: int) -> Iterator[dict[str, int]]:
    """Inferences in groups of `each`, added up: the images of a batch taken one by one."""
    left = iter(found)
    while group := list(islice(left, each)):
        spent: dict[str, int] = defaultdict(int)
        for run in group:
            for name, microseconds in run.items():
                spent[name] += microseconds
        yield dict(spent)


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
