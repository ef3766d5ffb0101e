"""A search in two processes: the same operators in both, and as one process would have found with the whole batches."""

import fresh
import pytest
import torch

distributed = pytest.importorskip("torch.distributed")
if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("this build of torch has no gloo", allow_module_level=True)

SEARCH = """
import torch
from torch import nn
from lightkernels import compress

def searched(part, checkpoint=None):
    torch.manual_seed(0)
    # Without BatchNorm outside the operators; the operators' own see half of the batch each.
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 36, 4))
    half = torch.randn(4, 4, 3, 6, 6)
    labels = torch.randint(4, (4, 4))
    # Both halves alike: statistics of half the batch are then those of the whole.
    data = [(torch.cat([x, x])[part], torch.cat([y, y])[part]) for x, y in zip(half, labels)]
    net, plan = compress.reconstruct(model, half[0], ["N_3x3_4", "Sep_3x3", "N_3x3_2", "N_3x3"])
    settings = compress.preset("recommended", epochs=4, warmup_epochs=1, freeze_epochs=1, lr=0.02, gate_lr=0.05)
    records = compress.search(net.double(), plan, [(x.double(), y) for x, y in data], settings, progress=False,
                              checkpoint=checkpoint, target=plan.target("params", "90%"))
    return net.state_dict(), [record["operators"] for record in records], [record["loss"] for record in records]
"""

RANK = """
import torch.distributed as dist

def rank(i):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://{folder}/meeting", rank=i, world_size=2)
    torch.save(searched(slice(4 * i, 4 * i + 4), "{folder}/search.pt"), f"{folder}/{{i}}.pt")
    dist.destroy_process_group()
"""


def test_two_processes_search_as_one(tmp_path):
    fresh.run_ranks(SEARCH + RANK.format(folder=str(tmp_path)), 2)
    one = {}
    exec(SEARCH, one)  # the very code that the two processes run
    expected, operators, losses = one["searched"](slice(None))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0][1] == found[1][1] == operators
    assert found[0][2] == found[1][2] == pytest.approx(losses, rel=1e-8)
    for name, value in expected.items():
        if value.is_floating_point() and "running_var" not in name:  # half a batch has another unbiased variance
            torch.testing.assert_close(found[0][0][name], found[1][0][name], rtol=0, atol=0)
            torch.testing.assert_close(found[0][0][name], value, rtol=1e-6, atol=1e-8)
    content = torch.load(tmp_path / "search.pt", weights_only=True)
    assert content["done"] == 4 and len(content["random"]) == 2
