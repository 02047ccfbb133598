"""What each layer loses in int8, and the cheapest mix of int8 and float that keeps accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from pipeline.progress import track
from pipeline.quantization.judge import Judge
from pipeline.quantized import LayerLoss, Rescue, Sensitivity

Mixed = Callable[[Sequence[str]], onnx.ModelProto]
"""Names of the layers that stay float -> the graph."""


def sensitivity(mixed: Mixed, judge: Judge, macs: dict[str, int]) -> Sensitivity:
    """The graph with each layer in `macs` (multiply-adds by name) alone in float."""
    whole = judge(mixed([]))
    found = []
    for layer, count in track(macs.items(), "sensitivity", len(macs)):
        score = judge(mixed([layer]))
        found.append(LayerLoss(layer=layer, macs=count, snr_db=score.snr_db, val_top1=score.top1))
    return Sensitivity(
        n=judge.n,
        float_top1=judge.float_top1,
        int8_top1=whole.top1,
        int8_snr_db=whole.snr_db,
        layers=tuple(found),
    )


def search(mixed: Mixed, judge: Judge, losses: Sensitivity, max_drop: float) -> Rescue:
    """The cheapest mix whose accuracy is within `max_drop` points of the float student's.

    Layers are ranked by how much of the noise they cause for each multiply-add that float would
    make slower; the shortest head of that ranking that is good enough is found by bisection. Then
    each of its layers, the most expensive first, goes back to int8 where the rest is good enough
    without it. With all layers in float some activations are still rounded; where even that is not
    good enough, it is what is returned.
    """
    tried: dict[frozenset[str], float] = {}

    def drop(layers: Sequence[str]) -> float:
        key = frozenset(layers)
        if key not in tried:
            tried[key] = round(100 * (judge.float_top1 - judge(mixed(layers)).top1), 9)
        return tried[key]

    ranked = [loss.layer for loss in sorted(losses.layers, key=lambda x: -_worth(x, losses))]
    fewest, most = 0, len(ranked)
    while fewest < most:
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if drop(ranked[:middle]) <= max_drop else (middle + 1, most)
    kept, costs = ranked[:most], {loss.layer: loss.macs for loss in losses.layers}
    if drop(kept) <= max_drop:
        for layer in sorted(kept, key=lambda name: -costs[name]):
            rest = [name for name in kept if name != layer]
            kept = rest if drop(rest) <= max_drop else kept
    whole, mix = mixed([]), mixed(kept)
    before, after = judge.interleaved_ms([whole, mix])
    return Rescue(
        max_drop=max_drop,
        drop_before=drop([]),
        drop=drop(kept),
        float_layers=tuple(kept),
        tried=len(tried),
        latency_ratio=after / before,
        bytes_before=whole.ByteSize(),
        bytes=mix.ByteSize(),
    )


def _worth(loss: LayerLoss, losses: Sensitivity) -> float:
    """Noise power that float takes away, as a share of all, for each multiply-add."""
    return (1 - 10 ** ((losses.int8_snr_db - loss.snr_db) / 10)) / max(loss.macs, 1)
