"""Moving small tensors to the device without waiting for it."""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which lies on the CPU, on `device`.

    To a GPU it goes by way of pinned memory: from ordinary memory the copy would wait for all work
    before it. Elsewhere the copy is done when this returns, for the tensor may be freed then.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
