"""A network together with its input contract: what is evaluated, exported and shipped."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.records import InputSpec


class Classifier(nn.Module):
    """Takes the images a phone has, uint8 [batch, size, size, channels]; gives logits.

    Scaling, mean and standard deviation are part of it, so that no file that is exported from it
    can be fed wrongly normalised images.
    """

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.network = network
        # x -> (x / 255 - mean) / std as one multiplication and one addition.
        scale = torch.tensor([1 / (255 * std) for std in spec.std])
        shift = torch.tensor([-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)])
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of uint8 `images` [batch, size, size, channels]."""
        pixels = images.permute(0, 3, 1, 2).to(self.scale.dtype)
        if torch.compiler.is_exporting():
            # Channels-last is for training; in an exported graph it leaves a gather behind each
            # global average pooling.
            pixels = pixels.contiguous()
        return self.from_pixels(pixels)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of float `pixels` [batch, channels, size, size] in 0..255."""
        return self.network(pixels * self.scale + self.shift)


class Answering(nn.Module):
    """A classifier as one format calls it: `read` gives the logits of the format's images.

    Ends in logits or, where `output` says so, in probabilities [batch, classes].
    """

    def __init__(
        self, classifier: Classifier, output: str, read: Callable[[Classifier, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self._read = read
        self._output = output
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """What the file answers to `images`, in the form that `read` takes."""
        logits = self._read(self.classifier, images)
        return torch.softmax(logits, dim=1) if self._output == "probabilities" else logits
