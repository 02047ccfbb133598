"""Confusions, precision and differences by class: by hand and against scikit-learn."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.stats import PairedDifference, paired_difference
from pipeline import confusions
from pipeline.confusions import Confused, Confusions

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
NAMED = np.array([0, 1, 1, 1, 0, 2, 0, 2])


@pytest.fixture
def many():
    """Labels and answers of 60 classes, one of which has no image and one is never named."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 59, 3000)
    named = np.where(rng.random(3000) < 0.7, labels, rng.integers(1, 60, 3000))
    return labels, np.where(named == 0, 1, named)


def test_a_worked_example():
    matrix = confusions.count(NAMED, LABELS, 3)
    assert matrix.tolist() == [[1, 2, 0], [1, 1, 0], [1, 0, 2]]
    found = confusions.of(matrix)
    assert found.wrong == 4 and found.counts == ((1, 2, 0), (1, 1, 0), (1, 0, 2))
    assert found.most(9) == (Confused(0, 1, 2), Confused(1, 0, 1), Confused(2, 0, 1))
    assert found.most(1) == (Confused(0, 1, 2),)
    assert confusions.precisions(matrix) == pytest.approx((1 / 3, 1 / 3, 1.0))


def test_matrix_and_precision_are_scikit_learns(many):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    labels, named = many
    matrix, classes = confusions.count(named, labels, 60), np.arange(60)
    assert (matrix == metrics.confusion_matrix(labels, named, labels=classes)).all()
    expected = metrics.precision_score(
        *(labels, named), labels=classes, average=None, zero_division=np.nan
    )
    found = np.array([np.nan if each is None else each for each in confusions.precisions(matrix)])
    assert np.isnan(found[0]) and found[1:] == pytest.approx(expected[1:])
    hits, all_of = np.diagonal(matrix), matrix.sum(axis=1)
    recall = metrics.recall_score(labels, named, labels=classes[:59], average=None)
    assert hits[:59] / all_of[:59] == pytest.approx(recall) and all_of[59] == 0


def test_of_many_classes_only_the_largest_cells_are_kept(many):
    labels, named = many
    matrix = confusions.count(named, labels, 60)
    found = confusions.of(matrix)
    assert found.counts is None and len(found.cells) == confusions.KEPT
    assert found.wrong == int((labels != named).sum())
    sizes = [cell.n for cell in found.cells]
    off = np.sort(matrix[~np.eye(60, dtype=bool)])[::-1]
    assert sizes == off[: confusions.KEPT].tolist()
    assert all(matrix[cell.truth, cell.named] == cell.n for cell in found.cells)
    equal = [cell[:2] for cell in found.cells if cell.n == sizes[-1]]
    assert equal == sorted(equal)
    whole = confusions.of(matrix[:50, :50])
    assert whole.counts is not None and not whole.cells


def test_what_is_kept_goes_through_json(many):
    labels, named = many
    for each in (confusions.of(confusions.count(named, labels, 60)), Confusions(wrong=0)):
        assert Confusions.model_validate_json(each.model_dump_json()) == each
    added = json.loads(Confusions(wrong=1).model_dump_json()) | {"later": 1}
    assert Confusions.model_validate_json(json.dumps(added)).wrong == 1


def test_differences_by_class_are_paired_within_it():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 300)
    a, b = rng.random(300) < 0.6, rng.random(300) < 0.8
    found = confusions.by_class(a, b, labels, 4)
    assert found[3] is None
    for at in range(3):
        assert found[at] == paired_difference(a[labels == at], b[labels == at])
    assert sum((each.difference * each.n) for each in found if each) == pytest.approx(
        int(b.sum()) - int(a.sum())
    )
    with pytest.raises(ValueError, match="not the same images: 300, 299, 300"):
        confusions.by_class(a, b[1:], labels, 3)


def with_p(p):
    return PairedDifference(difference=0.1, ci95=(0.0, 0.2), mcnemar_p=p, n=10)


def test_what_is_certain_of_many_classes_is_holms():
    # 0.005 < 0.05 / 4 and 0.01 < 0.05 / 3, but 0.03 > 0.05 / 2: it and all larger ones stay out
    found = [with_p(p) for p in (0.01, 0.04, 0.03, 0.005)]
    assert confusions.certain(found) == [0, 3]
    assert confusions.certain([None, with_p(0.04), None]) == [1]
    assert confusions.certain([]) == [] and confusions.certain([with_p(0.06)]) == []


def test_chance_among_a_thousand_classes_is_not_called_certain():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1000), 20)
    a, b = (rng.random(20_000) < 0.5 for _ in range(2))
    found = confusions.by_class(a, b, labels, 1000)
    naive = [each for each in found if each and each.mcnemar_p < 0.05]
    assert len(naive) > 5 and confusions.certain(found) == []
    b[labels == 7], a[labels == 7] = True, False
    found = confusions.by_class(a, b, labels, 1000)
    assert found[7] is not None and found[7].mcnemar_p < 0.05 / 1000
    assert found[7].mcnemar_p == pytest.approx(binomtest(20, 20).pvalue)
    assert confusions.certain(found) == [7]
