"""Core ML packages for the tests of the reference executor: of untrained students."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from exporters import coreml as exporter
from models.classifier import Classifier
from pipeline.records import InputSpec
from runtime.coreml_reference import package as packages

RNG = np.random.default_rng(0)
LABELS = ("ant", "bee", "cicada", "dragonfly", "earwig")


def tools() -> Any:
    """coremltools, without what it says when it is imported."""
    packages.schema()
    import coremltools as ct

    return ct


def builder() -> Any:
    """coremltools' builder of programs, which makes its methods as it is imported."""
    tools()
    from coremltools.converters.mil import Builder

    return Builder


def quiet() -> contextlib.AbstractContextManager[None]:
    """For the notices and progress bars of a conversion."""
    return packages._silence()


def noise(count, size, channels=3):
    """Images with large and small structures, which a trained network would find something in."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)
    fine = rng.integers(-40, 40, (count, size, size, channels))
    large = coarse.repeat(size // 4, 1).repeat(size // 4, 2)
    return np.clip(large + fine, 0, 255).astype(np.uint8)


class Student(Classifier):
    """One that remembers its input contract."""

    def __init__(self, network, spec):
        super().__init__(network, spec)
        self.contract = spec


def student(arch="mobilenet_v2", channels: Any = 3, size=32, width=1.0):
    """An untrained student whose normalisation layers fit what goes through them."""
    torch.manual_seed(0)
    network = models.build(arch, classes=5, channels=channels, image_size=size, width=width)
    spec = InputSpec(
        size=size,
        channels=channels,
        mean=(0.5, 0.45, 0.4)[:channels],
        std=(0.3, 0.25, 0.2)[:channels],
    )
    classifier = Student(network, spec)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # plain averages
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        classifier.train()(torch.from_numpy(noise(16, size, channels)))
    return classifier.eval()


def write(classifier, path, **settings):
    """The exporter's package."""
    made = exporter.convert(classifier, classifier.contract, LABELS, exporter.Settings(**settings))
    with quiet():
        made.save(str(path))
    return path


def write_float(classifier, path):
    """The same network in float32 throughout, where nothing is rounded.

    One pass is left out: it makes a normalisation of the multiplication and addition in front, of
    variance 1 and epsilon 1e-5, and so scales the image by 1 / sqrt(1.00001).
    """
    ct = tools()
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes(["common::fuse_elementwise_to_batchnorm"])

    class OfPixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = classifier

        def forward(self, image):
            return self.classifier.from_pixels(image)

    shape = (1, classifier.contract.channels, classifier.contract.size, classifier.contract.size)
    with quiet():
        exported = torch.export.export(OfPixels().eval(), (torch.zeros(shape),))
        layout = ct.colorlayout.GRAYSCALE if shape[1] == 1 else ct.colorlayout.RGB
        made = ct.convert(
            exported.run_decompositions({}),
            inputs=[ct.ImageType(name="image", shape=shape, color_layout=layout)],
            classifier_config=ct.ClassifierConfig(list(LABELS)),
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=passes,
            skip_model_load=True,
        )
        made.save(str(path))
    return path


def logits(classifier, images):
    with torch.inference_mode():
        return classifier(torch.from_numpy(images)).numpy()


def difference(found, expected):
    """Mean absolute difference in standard deviations of what is expected."""
    return np.abs(found - expected).mean() / expected.std()
