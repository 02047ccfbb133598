"""The pictures of accuracy against latency and against size."""

import json
import re

import pytest

from benchmarks.predict import predict
from benchmarks.published.fitting import workloads
from pipeline import figures, on_device, tradeoffs
from tests.small_run import HOST


def drawn(figure):
    assert figure is not None
    return json.loads(str(figure.to_json()))["data"]


def marks(figure):
    return {trace["name"]: trace for trace in drawn(figure) if trace["mode"] == "markers"}


def front(figure):
    """The front's costs and accuracies."""
    lines = [trace for trace in drawn(figure) if trace["mode"] == "lines"]
    return [list(zip(line["x"], line["y"], strict=True)) for line in lines]


def predicted(report):
    """`report` with estimates of a published network for its ONNX files, as those of a run have."""
    work = workloads()["mobilenet_v2"]
    known = {
        "onnx fp32": (*predict(work, "fp32"), *predict(work, "fp16")),
        "onnx int8": tuple(predict(work, "int8")),
    }
    rows = [
        row.model_copy(update={"predicted": known.get(row.title, ())}) for row in report.artifacts
    ]
    return report.model_copy(update={"artifacts": tuple(rows)})


def unbeaten(points):
    """Those that no other point beats, each held against all others."""
    return sorted(
        (x, y)
        for x, y in points
        if not any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)
    )


def test_both_pictures_hold_the_numbers(report):
    point = marks(tradeoffs.latency(report))["onnx fp32"]
    assert point["x"] == [3.0] and point["y"] == pytest.approx([100 * 1100 / 1200])
    assert point["error_y"]["array"][0] > 0 and point["marker"]["symbol"] == "circle"
    for text in ("top-1 91.67 % (89.97–93.10)", "p50 3.00 · p90 3.30", "8.90 MB", "measured", HOST):
        assert text in point["hovertemplate"]
    sizes = marks(tradeoffs.size(report))
    assert {name: trace["x"] for name, trace in sizes.items()} == {
        "onnx fp32": [8.9],
        "onnx int8": [2.4],
    }
    assert "run by onnxruntime 1.32.0" in sizes["onnx fp32"]["hovertemplate"]


def test_a_latency_has_its_interval_drawn(report):
    taken = report.artifacts[0].latency.model_copy(update={"p50_ci95": (2.9, 3.2)})
    row = report.artifacts[0].model_copy(update={"latency": taken})
    changed = report.model_copy(update={"artifacts": (row, *report.artifacts[1:])})
    bar = marks(tradeoffs.latency(changed))["onnx fp32"]["error_x"]
    assert bar["array"] == pytest.approx([0.2]) and bar["arrayminus"] == pytest.approx([0.1])


def test_the_fronts_keep_what_nothing_beats(run):
    slow = run.measured("slow", run.logits(200), 5.0)
    run.add_artifact("ort", "fp32", 10_000_000, slow)  # the slowest, largest and least accurate
    small = run.measured("small", run.logits(150), 2.0)
    run.add_artifact("litert", "int8", 1_000_000, small)  # less accurate, but the smallest
    report = run.report()
    for figure in (tradeoffs.latency(report), tradeoffs.size(report)):
        files = {name: trace for name, trace in marks(figure).items() if "PyTorch" not in name}
        assert len(files) == 4
        expected = unbeaten([(trace["x"][0], trace["y"][0]) for trace in files.values()])
        assert front(figure) == [expected] and 1 < len(expected) < 4


def test_predicted_points_are_hollow_and_off_the_front(report):
    told = predicted(report)
    columns = on_device.columns(told)
    assert [column.unit for column in columns] == ["CPU", "NPU"]
    points = [trace for trace in drawn(tradeoffs.latency(told)) if trace["mode"] == "markers"]
    hollow = [trace for trace in points if trace["marker"]["symbol"].endswith("-open")]
    assert len(hollow) == 3  # fp32 and int8 on that CPU, fp32's graph on that NPU
    for trace in points:
        assert ("predicted for" in trace["hovertemplate"]) == (trace in hollow)
    found = columns[0].of(told.artifacts[0])
    assert found is not None and hollow[0]["x"] == [found.latency_ms]
    ends = hollow[0]["error_x"]
    assert found.latency_ms + ends["array"][0] == pytest.approx(found.interval80[1])
    assert front(tradeoffs.latency(told)) == front(tradeoffs.latency(report))


def test_one_host_only_is_drawn(run):
    elsewhere = run.measured("else", run.logits(100), 5.0)
    latency = elsewhere.latency.model_copy(update={"host": "another"})
    run.add_artifact("ort", "fp32", 10, elsewhere.model_copy(update={"latency": latency}))
    report = run.report()
    assert "ort fp32" not in marks(tradeoffs.latency(report))
    assert "ort fp32" in marks(tradeoffs.size(report))


def test_the_legend_names_every_mark_once(report):
    names = [title for _, _, title in tradeoffs.key(report)]
    drawn_names = {**marks(tradeoffs.latency(report)), **marks(tradeoffs.size(report))}
    assert sorted(names) == sorted(drawn_names)
    assert all(
        glyph and re.fullmatch("#[0-9a-f]{6}", color) for color, glyph, _ in tradeoffs.key(report)
    )


def test_nothing_is_drawn_of_nothing(report):
    without = report.model_copy(update={"artifacts": (), "models": ()})
    assert tradeoffs.latency(without) is None and tradeoffs.size(without) is None
    assert tradeoffs.key(without) == []


# Machado, Oliveira & Fernandes 2009 (IEEE TVCG 15:1291), severity 1.0, on linear RGB.
BLIND = {
    "protan": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deutan": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritan": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def lab(linear):
    """CIE L*a*b* (D65) of linear RGB."""
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    x, y, z = (
        max(sum(a * b for a, b in zip(row, linear, strict=True)), 0) / w
        for row, w in zip(rows, white, strict=True)
    )
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z)]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def seen(color, kind):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return lab([sum(a * b for a, b in zip(row, linear, strict=True)) for row in BLIND[kind]])


@pytest.mark.parametrize("kind", BLIND)
def test_colours_can_be_told_apart_without_a_kind_of_cone(kind):
    colors = [seen(color, kind) for color in figures.PRECISION.values()]
    for i, a in enumerate(colors):
        for b in colors[i + 1 :]:
            assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 15
