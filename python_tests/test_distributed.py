"""DistributedDataParallel: two processes with half of the batch each train as one process with the whole."""

import fresh
import pytest
import torch

distributed = pytest.importorskip("torch.distributed")
if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("this build of torch has no gloo", allow_module_level=True)

STEPS = """
import torch
from torch import nn
from lightkernels.nn import MultiDepthwiseConv2d

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.widen = nn.Conv2d(3, 8, 1)
        self.depthwise = MultiDepthwiseConv2d(8, (3, 5), stride=2, bias=True)
        self.added = MultiDepthwiseConv2d(16, (3, 5, 7), combine="add")
        self.classify = nn.Linear(16, 4)

    def forward(self, x):
        x = self.added(self.depthwise(self.widen(x).relu()).relu())
        return self.classify(x.mean((2, 3)))

def made():
    torch.manual_seed(0)
    return Net().double(), torch.randn(3, 8, 3, 9, 8, dtype=torch.float64), torch.randint(4, (3, 8))

def train(model, images, labels, part):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    gradients = []
    for x, y in zip(images, labels):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        gradients += [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return gradients + [p.detach() for p in model.parameters()]
"""

RANK = """
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def rank(i):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://{folder}/meeting", rank=i, world_size=2)
    model, images, labels = made()
    if i:
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
    found = train(DistributedDataParallel(model), images, labels, slice(4 * i, 4 * i + 4))
    torch.save(found, f"{folder}/{{i}}.pt")
    dist.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    fresh.run_ranks(STEPS + RANK.format(folder=str(tmp_path)), 2)
    one = {}
    exec(STEPS, one)  # the very code that the two processes run
    model, images, labels = one["made"]()
    expected = one["train"](model, images, labels, slice(None))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for a, b, whole in zip(*found, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, whole, rtol=1e-10, atol=1e-12)
