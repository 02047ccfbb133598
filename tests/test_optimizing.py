"""How the weights move: the schedule, the groups, and the moving average."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.optimizing import Average, make_optimizer, rate_at, set_rate
from pipeline.settings import Recipe


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [rate_at(step, 100, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert rates[40] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_schedule_of_one_step():
    assert math.isfinite(rate_at(0, 1, 0.0)) and math.isfinite(rate_at(0, 1, 0.9))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_head_and_body_learn_at_their_own_rates_and_biases_do_not_decay(name):
    model = network()
    recipe = Recipe(optimizer=name, learning_rate=0.4, weight_decay=0.01)
    head = {"3.weight", "3.bias"}
    optimizer = make_optimizer(model, recipe, fused=True, head=head, body_rate=0.25)
    set_rate(optimizer, 0.5)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    wanted = {
        "0.weight": (0.05, 0.01),
        "0.bias": (0.05, 0),
        "1.weight": (0.05, 0),
        "1.bias": (0.05, 0),
        "3.weight": (0.2, 0.01),
        "3.bias": (0.2, 0),
    }
    assert {n: found[id(p)] for n, p in model.named_parameters()} == {
        name: pytest.approx(values) for name, values in wanted.items()
    }


def test_every_parameter_learns_without_weight_decay():
    optimizer = make_optimizer(
        network(), Recipe(weight_decay=0), fused=True, head=(), body_rate=1.0
    )
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


def test_the_average_follows_its_equation():
    model = network()
    average = Average(model, 0.7)
    wanted = {name: value.double().numpy() for name, value in model.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 1, 3, 3))  # moves the running statistics
        average.update(step)
        decay = min(0.7, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            new = value.double().numpy()
            counted = name.endswith("num_batches_tracked")
            wanted[name] = new if counted else decay * wanted[name] + (1 - decay) * new
    for name, value in average.network.state_dict().items():
        np.testing.assert_allclose(value.numpy(), wanted[name], rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in average.network.parameters())
