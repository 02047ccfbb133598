"""Losses against values worked out independently in float64 NumPy, and what every method must keep.

The contract tests take each method that `losses.names` finds: a new one is tested by being there.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import losses
from pipeline.logits import cross_entropy, soft_kl, standardize

SHAPES = [(1, 2), (1, 10), (2, 3), (17, 2), (17, 10), (64, 100)]
every_method = pytest.mark.parametrize("name", losses.names())
every_kind = pytest.mark.parametrize("standard", [False, True], ids=["plain", "standardized"])


def batch(n, classes, seed=0):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0.5, 2, (2, n, classes))
    return student, teacher, rng.integers(0, classes, n)


def softmax(z, t=1.0):
    e = np.exp((z - z.max(1, keepdims=True)) / t)
    return e / e.sum(1, keepdims=True)


def divergence(p, q):
    return (p * np.log(p / q)).sum(-1).mean()


def zscore(z):
    return np.array([(row - row.mean()) / (row.std(ddof=1) + 1e-7) for row in z])


def numpy_kd(s, t, y, temperature=4.0, hard_weight=0.1, soft_weight=None):
    p, q = softmax(t, temperature), softmax(s, temperature)
    weight = 1 - hard_weight if soft_weight is None else soft_weight
    return weight * temperature**2 * divergence(p, q)


def numpy_dkd(s, t, y, temperature=4.0, hard_weight=1.0, alpha=1.0, beta=8.0):
    total = 0.0
    for p, q, k in zip(softmax(t, temperature), softmax(s, temperature), y, strict=True):
        both = [np.array([v[k], 1 - v[k]]) for v in (p, q)]
        rest = [np.delete(v, k) / (1 - v[k]) for v in (p, q)]
        total += alpha * divergence(*both) + beta * divergence(*rest)
    return temperature**2 * total / len(y)


def pearson_distance(rows, others):
    found = []
    for a, b in zip(rows, others, strict=True):
        c = np.cov(a, b)
        found.append(1 - c[0, 1] / (np.sqrt(c[0, 0] * c[1, 1]) + 1e-8 / (len(a) - 1)))
    return np.mean(found)


def numpy_dist(s, t, y, temperature=4.0, hard_weight=1.0, inter=2.0, intra=2.0):
    p, q = softmax(t, temperature), softmax(s, temperature)
    # Two numbers correlate by +1 or -1 whatever they are: such relations are left out.
    loss = inter * pearson_distance(q, p) if p.shape[1] > 2 else 0.0
    loss += intra * pearson_distance(q.T, p.T) if len(y) > 2 else 0.0
    return temperature**2 * loss


def numpy_function_matching(s, t, y, temperature=1.0):
    return numpy_kd(s, t, y, temperature, hard_weight=0.0)


CASES = [
    ("kd", numpy_kd, [{}, {"hard_weight": 0.0}, {"hard_weight": 1.0}, {"soft_weight": 9.0}]),
    ("dkd", numpy_dkd, [{}, {"alpha": 0.0, "beta": 1.0}, {"beta": 0.0}, {"hard_weight": 0.0}]),
    ("dist", numpy_dist, [{}, {"inter": 0.0}, {"intra": 0.0}, {"inter": 1.0, "hard_weight": 0.0}]),
    ("function_matching", numpy_function_matching, [{}]),
]


@pytest.mark.parametrize(
    ("name", "oracle", "keys"), [(n, oracle, keys) for n, oracle, all_ in CASES for keys in all_]
)
@pytest.mark.parametrize(("n", "classes"), SHAPES)
@pytest.mark.parametrize("temperature", [None, 1.0, 4.0])
@every_kind
def test_value(name, oracle, keys, n, classes, temperature, standard):
    s, t, y = batch(n, classes)
    keys = keys if temperature is None else {**keys, "temperature": temperature}
    expected = oracle(*((zscore(s), zscore(t)) if standard else (s, t)), y, **keys)
    for dtype, error in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        got = distance(name, torch.tensor(s, dtype=dtype), t, y, standard, **keys)
        assert got.dtype == dtype and got.shape == ()
        assert got.item() == pytest.approx(expected, rel=error, abs=error)


def distance(name, student, teacher, labels, standard=False, **keys):
    """The method's distance; NumPy arrays become tensors of the student's type."""
    method = losses.load(name)
    teacher = torch.as_tensor(teacher, dtype=student.dtype)
    if standard:
        student, teacher = standardize(student), standardize(teacher)
    return method.distance(student, teacher, torch.as_tensor(labels), method.Settings(**keys))


def test_every_method_has_its_values_checked():
    assert [name for name, _, _ in sorted(CASES, key=lambda case: case[0])] == losses.names()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("n", "classes"), SHAPES)
def test_cross_entropy(n, classes, smoothing):
    s, _, y = batch(n, classes)
    rng = np.random.default_rng(1)
    others, share = rng.integers(0, classes, n), rng.random(n).astype(np.float32)
    hot = np.eye(classes)
    for target, mixed in (
        (hot[y], {}),
        (
            share[:, None] * hot[y] + (1 - share[:, None]) * hot[others],
            {"others": torch.tensor(others), "share": torch.tensor(share)},
        ),
    ):
        smooth = (1 - smoothing) * target + smoothing / classes
        expected = -(smooth * np.log(softmax(s))).sum(1).mean()
        got = cross_entropy(torch.tensor(s), torch.tensor(y), smoothing, **mixed)
        assert got.item() == pytest.approx(expected, rel=1e-6)


def test_half_of_a_mixture_is_refused():
    s, _, y = batch(3, 4)
    with pytest.raises(ValueError, match="both or none"):
        cross_entropy(torch.tensor(s), torch.tensor(y), others=torch.tensor(y))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_of_soft_kl(temperature):
    s, t, _ = batch(4, 3)
    student = torch.tensor(s, requires_grad=True)
    (got,) = torch.autograd.grad(soft_kl(student, torch.tensor(t), temperature), student)
    expected = temperature * (softmax(s, temperature) - softmax(t, temperature)) / 4
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_standardize(dtype):
    rows = torch.tensor(batch(17, 10)[0], dtype=dtype)
    rows[0], rows[1] = 0.0, 3.3  # constant rows are no evidence of anything
    got = standardize(rows)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (got[:2] == 0).all()
    np.testing.assert_allclose(got[2:], zscore(rows[2:].double().numpy()), atol=1e-6)


def test_methods_and_their_settings_need_no_torch():
    code = (
        "import sys; from pipeline import losses; "
        "[losses.load(name).Settings() for name in losses.names()]; "
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@every_method
def test_settings_are_documented_and_weigh_the_labels(name):
    method = losses.load(name)
    assert method.Settings().hard_weight >= 0 and isinstance(method.MIXES, bool)
    assert all(field.description for field in method.Settings.model_fields.values())
    assert method.__doc__ and "https://" in method.__doc__


@every_method
@every_kind
@pytest.mark.parametrize(("n", "classes"), SHAPES)
def test_agreement_costs_nothing_and_order_does_not_matter(name, standard, n, classes):
    s, t, y = batch(n, classes)
    same = distance(name, torch.tensor(s), s, y, standard).item()
    assert same == pytest.approx(0, abs=2e-3)  # T² · 1e-8 / variance is left in dist
    usual = distance(name, torch.tensor(s), t, y, standard).item()
    back = distance(name, torch.tensor(s[::-1].copy()), t[::-1].copy(), y[::-1].copy(), standard)
    assert usual >= 0 and back.item() == pytest.approx(usual)


@every_method
@every_kind
@pytest.mark.parametrize(("n", "classes"), SHAPES)
def test_gradient_to_the_student_only(name, standard, n, classes):
    s, t, y = batch(n, classes)
    teacher = torch.tensor(t, requires_grad=True)
    student = torch.tensor(s, requires_grad=True)
    distance(name, student, teacher, y, standard).backward()
    assert student.grad is not None and teacher.grad is None


@every_method
@every_kind
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (1, 5), (4, 2), (4, 5)])
def test_gradient_is_that_of_the_value(name, standard, n, classes):
    s, t, y = batch(n, classes)
    student = torch.tensor(s, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: distance(name, z, t, y, standard), student)


@every_method
@every_kind
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_answers_give_finite_losses_and_gradients(name, standard, classes, dtype):
    usual, other, y = batch(6, classes)
    right, wrong = (np.where(np.eye(classes)[(y + i) % classes], 1e4, -1e4) for i in (0, 1))
    uniform = np.zeros_like(usual)
    answers = [usual, other, right, wrong, uniform, uniform + 3.3]
    for s, t in itertools.product(answers, answers):
        student = torch.tensor(s, dtype=dtype, requires_grad=True)
        loss = distance(name, student, t, y, standard)
        (slope,) = torch.autograd.grad(loss, student)
        assert loss.dtype == torch.float32 and torch.isfinite(loss)
        # Nor may it be huge: a student that has no answer yet would be thrown out of reach.
        assert slope.dtype == dtype and slope.abs().max() < 1e3


@every_method
@pytest.mark.parametrize(("classes", "standard"), [(2, False), (5, False), (5, True)])
def test_training_approaches_the_teacher(name, classes, standard):
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(64, 6, generator=rng)
    teacher = images @ torch.randn(6, classes, generator=rng)
    weights = torch.randn(6, classes, generator=rng).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.1)
    trace = []
    for _ in range(100):
        loss = distance(name, images @ weights, teacher, teacher.argmax(1), standard)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trace.append(loss.item())
    assert trace[-1] < 0.1 * trace[0]
