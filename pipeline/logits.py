"""What every loss is built from: pure functions of logits [batch, classes].

They take any float type and compute in float32 (float64 stays, so that gradients can be checked).
"""

import torch.nn.functional as F
from torch import Tensor


def widen(logits: Tensor) -> Tensor:
    """`logits` in float32; float64 unchanged."""
    return logits if logits.dtype.itemsize > 4 else logits.float()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    others: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of `logits` with int64 `labels` [batch]: a scalar, the mean over the batch.

    Labels are smoothed as in Szegedy et al. 2016, section 7. A mixed image is `share` (float32
    [batch], 0..1) of its label and the rest of its label in `others` (int64 [batch]), and so is its
    loss: share · CE(label) + (1 - share) · CE(other), which is CE with the mixed target of Zhang et
    al. 2018, as cross-entropy is linear in the target.
    """
    if (others is None) != (share is None):
        raise ValueError("`others` and `share` describe mixed images together: give both or none")

    def each(target: Tensor) -> Tensor:
        return F.cross_entropy(
            widen(logits), target, reduction="none", label_smoothing=label_smoothing
        )

    loss = each(labels)
    if others is not None and share is not None:
        loss = share * loss + (1 - share) * each(others)
    return loss.mean()


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)): a scalar, the mean over the batch.

    Hinton, Vinyals & Dean 2015, section 2: the factor T² keeps the gradient's size independent of
    the temperature T. Without a gradient to `teacher`.
    """
    target = (widen(teacher.detach()) / temperature).log_softmax(dim=1)
    answer = (widen(student) / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(answer, target, reduction="batchmean", log_target=True)


def centred(rows: Tensor) -> Tensor:
    """`rows` [n, m] minus the mean of each; a row that is constant but for rounding gives zeros.

    Those zeros have no gradient either. What divides by the spread of a row has a gradient that
    grows with its inverse: without this, a last layer that starts at zero would begin with steps of
    1e7, in the direction of a rounding error.
    """
    difference = rows - rows.mean(dim=1, keepdim=True)
    varies = difference.norm(dim=1, keepdim=True) > 1e-6 * rows.norm(dim=1, keepdim=True)
    return difference * varies


def standardize(logits: Tensor) -> Tensor:
    """The z-score of each row, float32 [batch, classes]: (z - mean) / (std + 1e-7).

    Sun et al., CVPR 2024, Z(z; τ) without τ, which the losses divide by themselves; std is unbiased
    and 1e-7 added as in the authors' code. With two classes only the sign of the difference is
    left, without a gradient.
    """
    deviation = centred(widen(logits))
    return deviation / (deviation.std(dim=1, keepdim=True) + 1e-7)
