"""A small network of random taps learns the digits."""

import pytest
import torch
from torch import nn

from lightkernels.nn import RSDC2d

pytest.importorskip("sklearn")


def network(resample):
    """Three layers, a set a filter, a group and a layer: 5x5 and 7x7 windows."""

    def block(*args, **values):
        return [RSDC2d(*args, bias=False, resample=resample, **values), nn.BatchNorm2d(args[1]), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16),
        *block(16, 32, 5, 2, groups=4, scope="group"),
        *block(32, 48, 7, 2, scope="layer"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


@pytest.mark.parametrize("resample", ["never"])
def test_the_digits_to_97_percent(resample):
    from lightkernels.train import digits, loop

    torch.manual_seed(0)
    train, test = (digits.Split(part.images[:, :1].contiguous(), part.labels) for part in digits.load())
    model = network(resample)
    recipe = loop.Recipe(epochs=8, reach=1)
    history = loop.fit(model, train, test, recipe, seed=0, tell=lambda _: None)
    assert loop.accuracy(model, test) >= 0.97, history.accuracies
