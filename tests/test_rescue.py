"""The search for the layers that must stay float, on networks that are no more than a rule."""

from collections.abc import Callable, Sequence

import onnx
import pytest

from pipeline.quantization import rescue
from pipeline.quantization.judge import Judge, Score
from pipeline.quantized import LayerLoss, Sensitivity

LAYERS = ("stem", "one", "two", "three", "head")
MACS: dict[str, int] = dict(zip(LAYERS, (100, 400, 300, 200, 50), strict=True))
FLOAT, INT8 = 0.9, 0.5
"""Top-1 with all layers float, and with none."""


def mixed(layers: Sequence[str]) -> onnx.ModelProto:
    """A graph that is no more than the list of its float layers."""
    return onnx.ModelProto(doc_string=",".join(layers))


class Rule(Judge):
    """Scores a list of float layers by a rule."""

    def __init__(self, top1: Callable[[set[str]], float]) -> None:
        self.n, self.float_top1, self.threads = 1000, FLOAT, 1
        self.asked: list[frozenset[str]] = []
        self._top1 = top1

    def __call__(self, graph: onnx.ModelProto) -> Score:
        layers = set(filter(None, graph.doc_string.split(",")))
        self.asked.append(frozenset(layers))
        top1 = self._top1(layers)
        return Score(top1=top1, agreement=top1, snr_db=20 * top1)

    def interleaved_ms(self, graphs: Sequence[onnx.ModelProto]) -> list[float]:
        return [1.0 + len(graph.doc_string) for graph in graphs]


def losses(**snr_db: float) -> Sensitivity:
    """Signal to noise with each layer alone in float; 10 dB with none."""
    layers = tuple(
        LayerLoss(layer=name, macs=MACS[name], snr_db=snr_db.get(name, 10.0), val_top1=INT8)
        for name in LAYERS
    )
    return Sensitivity(n=1000, float_top1=FLOAT, int8_top1=INT8, int8_snr_db=10.0, layers=layers)


def needs(*layers: str) -> Callable[[set[str]], float]:
    """Good where all of these are float."""
    return lambda found: FLOAT if found.issuperset(layers) else INT8


def test_the_one_layer_that_matters_is_found():
    judge = Rule(needs("two"))
    found = rescue.search(mixed, judge, losses(two=19), max_drop=1)
    assert found.float_layers == ("two",)
    assert (found.drop_before, found.drop) == (pytest.approx(40), 0)
    assert found.max_drop == 1


def test_layers_that_turn_out_not_to_be_needed_go_back():
    """The ranking is wrong of them: it comes from each layer alone."""
    found = rescue.search(mixed, Rule(needs("three")), losses(stem=15, head=14, three=13), 1)
    assert found.float_layers == ("three",)


def test_layers_that_only_help_together_are_found():
    judge = Rule(needs("one", "three"))
    found = rescue.search(mixed, judge, losses(head=12, one=11, three=11), 1)
    assert set(found.float_layers) == {"one", "three"} and found.drop == 0


def test_of_two_that_would_do_the_cheaper_stays():
    def either(found: set[str]) -> float:
        return FLOAT if "three" in found and found & {"one", "head"} else INT8

    found = rescue.search(mixed, Rule(either), losses(one=19, head=13, three=12), 1)
    assert set(found.float_layers) == {"head", "three"}


def test_noise_is_weighed_by_what_float_costs():
    """The same noise in a layer of a sixth of the multiply-adds is worth more."""
    judge = Rule(lambda found: INT8 + 0.1 * len(found))
    found = rescue.search(mixed, judge, losses(one=13, head=13, two=13), max_drop=30)
    assert found.float_layers == ("head",)


def test_a_layer_that_makes_it_worse_comes_last():
    judge = Rule(lambda found: INT8 if "stem" in found else INT8 + 0.1 * len(found))
    found = rescue.search(mixed, judge, losses(stem=8, head=11, three=11, two=11, one=11), 0)
    assert "stem" not in found.float_layers and len(found.float_layers) == 4


def test_where_nothing_is_enough_all_layers_are_float():
    judge = Rule(lambda found: INT8 + 0.01 * len(found))
    found = rescue.search(mixed, judge, losses(one=12), max_drop=1)
    assert sorted(found.float_layers) == sorted(LAYERS)
    assert found.drop == pytest.approx(35) and found.drop > found.max_drop


@pytest.mark.parametrize("lost", [0.005, 0.01])
def test_what_is_within_the_limit_stays_int8(lost):
    """A loss of exactly the limit is within it, whatever binary fractions make of it."""
    found = rescue.search(mixed, Rule(lambda found: FLOAT - lost), losses(one=12), max_drop=1)
    assert found.float_layers == () and found.latency_ratio == 1


def test_no_graph_is_judged_twice_and_each_is_counted():
    judge = Rule(needs("one", "three"))
    found = rescue.search(mixed, judge, losses(stem=11, one=11, three=11), 1)
    assert len(set(judge.asked)) == len(judge.asked) == found.tried
    # Bisection over five layers, then each of those kept without the others.
    assert found.tried <= 4 + len(LAYERS) + 1


def test_sizes_and_times_are_of_the_mix_and_of_int8():
    found = rescue.search(mixed, Rule(needs("two")), losses(two=19), max_drop=1)
    assert found.bytes_before == mixed([]).ByteSize() < found.bytes == mixed(["two"]).ByteSize()
    assert found.latency_ratio == 1.0 + len("two")


def test_sensitivity_tries_each_layer_alone():
    top1 = {frozenset(): 0.5, frozenset({"two"}): 0.8}
    judge = Rule(lambda found: top1.get(frozenset(found), 0.6))
    found = rescue.sensitivity(mixed, judge, MACS)
    assert sorted(judge.asked, key=len) == [frozenset(), *(frozenset({name}) for name in LAYERS)]
    assert (found.n, found.float_top1, found.int8_top1) == (1000, FLOAT, 0.5)
    assert found.int8_snr_db == 10
    assert [each.layer for each in found.layers] == list(LAYERS)
    assert [each.macs for each in found.layers] == list(MACS.values())
    assert [each.val_top1 for each in found.layers] == [0.6, 0.6, 0.8, 0.6, 0.6]
    assert [each.snr_db for each in found.layers] == pytest.approx([12, 12, 16, 12, 12])
