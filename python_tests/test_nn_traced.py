"""The older tracers: an operator is one node of torch.jit.trace's graph and of torch.fx's, for every size."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

from lightkernels.nn import MLDNBlock, MultiDepthwiseConv2d, RSDC2d, set_condensation_progress


def traced(layer, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(layer, x), file)
        file.seek(0)
        return torch.jit.load(file)


def operators(trace):
    return [node.kind() for node in trace.inlined_graph.nodes() if node.kind().startswith("lightkernels")]


@pytest.fixture
def layers():
    return nn.Sequential(MultiDepthwiseConv2d(4, combine="cumulative", bias=True), nn.ReLU(), RSDC2d(12, 6, stride=2))


@pytest.mark.parametrize("grad", [True, False])
def test_jit_trace(layers, grad):
    layers.requires_grad_(grad)
    found = traced(layers, torch.randn(2, 4, 5, 6))
    assert operators(found) == ["lightkernels::multi_dwconv2d", "lightkernels::rsdc2d"]
    x = torch.randn(3, 4, 7, 9)
    torch.testing.assert_close(found(x), layers(x))
    if grad:
        pairs = [torch.autograd.grad(m(x).sin().sum(), list(m.parameters())) for m in (found, layers)]
        torch.testing.assert_close(*pairs)


@torch.no_grad()
def test_jit_trace_of_a_block():
    block = MLDNBlock(8, 8, 2, 2, conv="rsdc").eval()
    found = traced(block, torch.randn(1, 8, 4, 5))
    assert operators(found) == ["lightkernels::mldn_block"]
    x = torch.randn(2, 8, 6, 3)
    torch.testing.assert_close(found(x), block(x))


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_fx_symbolic_trace_of_a_block(version, inner):
    block = MLDNBlock(8, 8, 2, 2, version=version, conv="rsdc")
    model = nn.Sequential(block, nn.ReLU()) if inner else block
    same, x = copy.deepcopy(model), torch.randn(3, 8, 4, 5)
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes].count("call_function") == 1
    assert graph.state_dict().keys() == model.state_dict().keys()
    for one in (graph, same):
        one(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in graph.parameters()], [p.grad for p in same.parameters()])
    torch.testing.assert_close(graph.state_dict(), same.state_dict())
    torch.testing.assert_close(graph.eval()(x), same.eval()(x))


def test_fx_symbolic_trace_of_a_condensed_block():
    block = MLDNBlock(8, 8, 2, 2)
    set_condensation_progress(block, 1.0)
    small = block.eval().condense()
    graph, x = torch.fx.symbolic_trace(small), torch.randn(2, 8, 4, 5)
    assert [n.op for n in graph.graph.nodes].count("call_function") == 1
    assert torch.equal(graph(x), small(x))


def test_fx_symbolic_trace(layers):
    graph = torch.fx.symbolic_trace(layers)
    assert {n.target for n in graph.graph.nodes if n.op == "get_attr"} == {*layers.state_dict()}
    x = torch.randn(3, 4, 7, 9)
    assert torch.equal(graph(x), layers(x))
    assert torch.equal(graph(x[0]), layers(x[0]))
