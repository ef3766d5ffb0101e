"""The zoo's networks against a second forward pass that was written from the specification alone.

Counts do not pin semantics: here weights are shared, and outputs and gradients agree in float64.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightkernels import models
from second_pass import cifar as second_cifar
from second_pass import mobilenetv2 as second_mobilenetv2
from second_pass import multiception as second_multiception
from second_pass import nguyen as second_nguyen
from second_pass import pydmobilenet as second_pydmobilenet
from second_pass.weights import Weights

ARCHITECTURES = ("resnet20", "resnet50", "senet56", "shakenet26_2x96d", "mobilenetv2")
CONVS = ("standard", "dsconv", "mixconv", "mixconv_dense", "multiception")


def _randomise(model: nn.Module) -> None:
    """Every parameter and running statistic away from its initial 0 or 1, so that none can be ignored unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype))


def _agree(model: nn.Module, second: Callable[..., Tensor], x: Tensor, training: bool, **options: Any) -> None:
    model = model.double().train(training)
    _randomise(model)
    # Copies: the model updates its running statistics while it runs.
    buffers = [buffer.clone() for buffer in model.buffers()]
    torch.manual_seed(7)
    ours = model(x)
    weights = Weights(model.parameters(), buffers)
    torch.manual_seed(7)
    theirs = second(weights, x, training=training, **options)
    weights.finish()
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.detach().abs().max()))
    assert float(theirs.detach().std()) > 1e-6, "logits that do not vary prove nothing"
    if not training:
        return
    wanted = [p for p in model.parameters() if p.requires_grad]
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3), dtype=ours.dtype)
    torch.manual_seed(7)
    left = torch.autograd.grad(ours, wanted, direction)
    right = torch.autograd.grad(theirs, wanted, direction)
    scale = max(float(g.abs().max()) for g in right)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * scale)


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("inner", ["out", "in"])
@pytest.mark.parametrize("mid", ["add", "concat", "depthwise", "dense"])
def test_pydmobilenet(mid: Any, inner: Any, training: bool) -> None:
    model = models.pydmobilenet(29, 0.25, mid, 7, inner=inner)
    options = {"depth": 29, "alpha": 0.25, "mid": mid, "inner": inner, "classes": 7}
    _agree(model, second_pydmobilenet.forward, _images(3, 3, 9, 12), training, **options)


def _shake(index: int, block_input: Tensor) -> tuple[Tensor, Tensor]:
    shape = (block_input.shape[0], 1, 1, 1)
    return block_input.new_empty(shape).uniform_(), block_input.new_empty(shape).uniform_()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_multiception(arch: Any, conv: Any, training: bool) -> None:
    if arch == "mobilenetv2" and conv in ("mixconv", "mixconv_dense"):
        pytest.skip("no published count defines this pair")
    if arch in ("resnet50", "senet56") and conv not in ("multiception", "dsconv"):
        pytest.skip("the same blocks as resnet20, which is compared for every layer")
    model = models.multiception_net(arch, conv, 5)
    options: dict[str, Any] = {"arch": arch, "conv": conv, "classes": 5}
    if arch == "shakenet26_2x96d":
        options["shake"] = _shake
    # mobilenetv2 divides the map by 16, and batch statistics over two or three values would magnify rounding.
    size = (2, 3, 48, 32) if arch == "mobilenetv2" else (2, 3, 8, 10)
    _agree(model, second_multiception.forward, _images(*size), training, **options)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_multiception_other_kernels(training: bool) -> None:
    kernels = ((3, 7), (5, 7), (3, 3))
    model = models.multiception_net("resnet20", "multiception", 5, kernels=kernels, last="single")
    options = {"arch": "resnet20", "conv": "multiception", "kernels": kernels, "last": "single", "classes": 5}
    _agree(model, second_multiception.forward, _images(2, 3, 8, 10), training, **options)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_mobilenetv2(training: bool) -> None:
    _agree(models.mobilenetv2(11), second_mobilenetv2.forward, _images(2, 3, 64, 48), training, classes=11)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("split", "width"), [(False, "mobilenetv2"), (True, "mobilenetv2"), (True, "table3")])
def test_dilated_mobilenetv2(split: bool, width: Any, training: bool) -> None:
    model = models.dilated_mobilenetv2((1, 2, 3), split, width, 9)
    options = {"dilations": (1, 2, 3), "split": split, "width": width, "classes": 9}
    _agree(model, second_nguyen.forward, _images(2, 3, 64, 48), training, **options)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("model", "second"),
    [
        (models.cifar_resnet, second_cifar.cifar_resnet),
        (models.resnet18_cifar, second_cifar.resnet18),
        (models.vgg16_cifar, second_cifar.vgg16),
        (models.densenet121_16, second_cifar.densenet121),
        (models.mobilenetv2_16, second_cifar.mobilenetv2_16),
    ],
    ids=["resnet20", "resnet18", "vgg16", "densenet121", "mobilenetv2"],
)
def test_networks_to_compress(model: Any, second: Any, training: bool) -> None:
    size = (32, 64) if second is second_cifar.vgg16 else (8, 16)
    _agree(model(num_classes=5), second, _images(2, 3, *size), training, classes=5)
