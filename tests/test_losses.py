"""Losses against values worked out independently in float64 NumPy, at their edges too."""

import numpy as np
import pytest
import torch

from pipeline.losses import cross_entropy, knowledge_distillation, soft_kl


def softmax(z, t=1.0):
    z = np.asarray(z, np.float64) / t
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_kd(student, teacher, labels, t, w):
    p, q = softmax(teacher, t), softmax(student, t)
    kl = (p * (np.log(p) - np.log(q))).sum(1).mean()
    hard = -np.log(softmax(student)[np.arange(len(labels)), labels]).mean()
    return w * hard + (1 - w) * t**2 * kl


def batch(n, classes, seed=0):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, 2, (2, n, classes))
    return student, teacher, rng.integers(0, classes, n)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_knowledge_distillation(classes, temperature, weight):
    s, t, y = batch(17, classes)
    got = knowledge_distillation(
        torch.tensor(s),
        torch.tensor(t),
        torch.tensor(y),
        temperature=temperature,
        hard_weight=weight,
    )
    assert got.item() == pytest.approx(numpy_kd(s, t, y, temperature, weight), rel=1e-5)


def test_label_smoothing():
    s, _, y = batch(9, 5)
    log = np.log(softmax(s))
    smooth = 0.9 * log[np.arange(9), y] + 0.1 * log.mean(1)
    got = cross_entropy(torch.tensor(s), torch.tensor(y), 0.1)
    assert got.item() == pytest.approx(-smooth.mean(), rel=1e-5)


def test_equal_logits_cost_nothing():
    s, _, _ = batch(5, 7)
    assert soft_kl(torch.tensor(s), torch.tensor(s), 3.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_certain_teacher_gives_a_finite_loss_and_gradient(dtype):
    teacher = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]).to(dtype)
    student = torch.tensor([[-50.0, 50.0], [0.0, 0.0]]).to(dtype).requires_grad_()
    loss = knowledge_distillation(
        student, teacher, torch.tensor([0, 1]), temperature=1.0, hard_weight=0.5
    )
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_gradient_to_the_student_only_and_right():
    s, t, _ = batch(4, 3)
    student = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    teacher = torch.tensor(t, dtype=torch.float32, requires_grad=True)
    soft_kl(student, teacher, 2.0).backward()
    # d/ds of T^2 KL, averaged over the batch: T (softmax(s/T) - softmax(t/T)) / batch
    expected = 2.0 * (softmax(s, 2) - softmax(t, 2)) / 4
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-6)
    assert teacher.grad is None
