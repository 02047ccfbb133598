"""Distillation losses: pure functions of logits and labels.

All take logits [batch, classes] of any float type, compute in float32, and return a scalar, the
mean over the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of `logits` with int64 `labels` [batch], smoothed as in Szegedy et al. 2016."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)).

    Hinton, Vinyals & Dean 2015, section 2: the factor T² keeps the gradient's size independent of
    the temperature T. Without a gradient to `teacher`.
    """
    target = torch.log_softmax(teacher.detach().float() / temperature, dim=1)
    answer = torch.log_softmax(student.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(answer, target, reduction="batchmean", log_target=True)


def knowledge_distillation(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    hard_weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """w · CE(student, labels) + (1 - w) · `soft_kl`, with w = `hard_weight` in 0..1.

    Hinton, Vinyals & Dean 2015, section 2.
    """
    hard = cross_entropy(student, labels, label_smoothing)
    return hard_weight * hard + (1 - hard_weight) * soft_kl(student, teacher, temperature)
