"""What an untrained student costs: its files are made, quantized and counted like those that ship.

Only the exporter is another (`fit.quickly`). Nothing here depends on the phone or the budget, so
the store answers the next question without work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import exporters
from benchmarks import graph_cost
from benchmarks.published import workload
from benchmarks.published.workload import Workload
from pipeline.config import Config
from pipeline.context import Context
from pipeline.contract import Facts
from pipeline.errors import ExportError
from pipeline.fit.budget import Budget
from pipeline.fit.phone import EXACT, Way, predicted
from pipeline.fit.quickly import write_quickly
from pipeline.fit.shots import Shot
from pipeline.fit.space import Network
from pipeline.machine import versions
from pipeline.records import Checkpoint, Dataset, Precision, Record, Result

if TYPE_CHECKING:
    import onnx

    from pipeline.quantization.graph import Prepared

VERSION = 1
"""Raised when the same network would be counted otherwise."""
NOISE = 8
"""Random images that give int8 ranges: which ones changes no size."""


class File(Record):
    """One file of a network."""

    precision: Precision
    bytes: int
    memory_bytes: int
    """Weights and most activations at one time, as in `graph_cost`."""
    work: Workload


class Candidate(Result):
    """A network and what its files cost."""

    network: Network
    params: int
    files: tuple[File, ...]
    missing: dict[str, str]
    """Why there is no file of a precision."""

    @property
    def macs(self) -> int:
        """Multiply-adds of one image."""
        work = self.files[0].work
        return work.dense_macs + work.depthwise_macs

    @property
    def capacity(self) -> float:
        """What stands for accuracy before anything is trained: √(multiply-adds · parameters).

        Accuracy rises with either where the rest is the same (Howard et al. 2017, section 4).
        """
        return (self.macs * self.params) ** 0.5


class Subject(NamedTuple):
    """What all candidates have in common."""

    context: Context
    dataset: Dataset
    export: exporters.FormatSettings
    """The table [export.onnx]."""
    precisions: tuple[Precision, ...]
    """Those that are made."""

    @classmethod
    def of(cls, config: Config, context: Context, dataset: Dataset) -> Subject:
        """What `config` would ship."""
        export = config.export.settings_of("onnx")
        wanted: Sequence[str] = getattr(export, "precisions", EXACT)
        made: list[Precision] = [each for each in EXACT if each in wanted]
        if not config.quantize.enabled and "int8" in made:
            made.remove("int8")
        if "fp32" not in made and "fp16" in made:
            made.remove("fp16")  # it is made of that file
        return cls(context, dataset, export, tuple(made))


def look(subject: Subject, network: Network) -> Candidate:
    """The costs of `network`, from the store where they are there.

    Raises `ExportError` where it cannot be written as ONNX or counted.
    """
    labels, spec = subject.dataset.labels, subject.dataset.input
    facts = {
        "labels": labels,
        "channels": spec.channels,
        "licence": subject.dataset.licence,
        "precisions": subject.precisions,
        "exporter": exporters.load("onnx").VERSION,
    }
    return subject.context.store.get(
        Candidate,
        "fit",
        lambda folder: _count(subject, network),
        version=VERSION,
        settings={"network": network, "export": subject.export},
        parents=[],
        facts=facts | versions("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime"),
    )


def shots(candidate: Candidate, way: Way, budget: Budget) -> list[Shot]:
    """The files that can be judged on that phone, the most exact first."""
    return [
        Shot.of(
            file.precision,
            file.bytes,
            file.memory_bytes,
            predicted(file.work, file.precision, way),
            budget,
        )
        for file in candidate.files
        if file.precision in way.precisions
    ]


def _count(subject: Subject, network: Network) -> Candidate:
    import onnx

    from exporters.onnx import in_half

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        student = _untrained(network, subject.dataset, folder)
        facts = Facts.of(student, subject.dataset.licence)
        prepared, why = _prepared(student, folder)
        files, missing = [], dict[str, str]()
        plain = _dressed(onnx.load(folder / "plain.onnx"), facts, subject)
        works = {"fp32": workload.of(_saved(plain, folder / "fp32.onnx"))}
        works["fp16"] = works["fp32"]
        for precision in subject.precisions:
            path = folder / f"{precision}.onnx"
            if precision == "fp16":
                _saved(in_half(onnx.load(folder / "fp32.onnx")), path)
            elif precision == "int8":
                if prepared is None:
                    missing[precision] = why
                    continue
                _saved(_dressed(_rounded(prepared, subject.dataset, network), facts, subject), path)
                works[precision] = workload.of(path)
            files.append(
                File(
                    precision=precision,
                    bytes=path.stat().st_size,
                    memory_bytes=graph_cost.cost(path).memory_bytes,
                    work=works[precision],
                )
            )
    return Candidate(network=network, params=student.params, files=tuple(files), missing=missing)


def _untrained(network: Network, dataset: Dataset, folder: Path) -> Checkpoint:
    """The network with random weights in `folder`."""
    import torch

    import models

    spec = dataset.input.model_copy(update={"size": network.size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = models.build(
            network.arch,
            classes=len(dataset.labels),
            channels=spec.channels,
            image_size=spec.size,
            width=network.width,
            stem_stride=1 if network.stem_stride == 1 else 2,
        )
        for value in built.state_dict().values():
            if value.dtype == torch.float32 and value.ndim == 1:
                value.uniform_(0.5, 1.5)  # equal ones would be stored once
    torch.save(built.state_dict(), folder / "weights.pt")
    return Checkpoint(
        key="0" * 16,
        folder=folder,
        role="student",
        arch=network.arch,
        width=network.width,
        stem_stride=network.stem_stride,
        labels=dataset.labels,
        input=spec,
        params=sum(parameter.numel() for parameter in built.parameters()),
        macs=0,
        device="none: untrained",
    )


def _prepared(student: Checkpoint, folder: Path) -> tuple[Prepared | None, str]:
    """The graph that int8 starts from, or why there is none; ``plain.onnx`` in any case."""
    import onnx

    from pipeline.quantization import graph

    try:
        prepared = graph.prepare(student, write_quickly)
    except ExportError as error:
        write_quickly(student, folder / "plain.onnx")
        return None, error.message
    onnx.save(prepared.plain, folder / "plain.onnx")
    return prepared, ""


def _rounded(prepared: Prepared, dataset: Dataset, network: Network) -> onnx.ModelProto:
    """The int8 graph, with ranges from noise."""
    import numpy as np

    from exporters.onnx import compact
    from pipeline.quantization import calibration, graph, histogram
    from pipeline.quantization.place import place

    shape = (NOISE, network.size, network.size, dataset.input.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    names = graph.activations(prepared.ready)
    seen = histogram.observe(prepared.ready, [images], names, threads=1)
    ranges = {name: calibration.ranges(each, "minmax") for name, each in seen.items()}
    return compact(place(prepared.ready, prepared.front, ranges).model)


def _dressed(model: onnx.ModelProto, facts: Facts, subject: Subject) -> onnx.ModelProto:
    from exporters import onnx as exporter

    settings = subject.export
    assert isinstance(settings, exporter.Settings)
    return exporter.dress(model, facts, settings)


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    import onnx

    onnx.save(model, path)
    return path
