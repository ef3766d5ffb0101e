"""Derivation, architecture files, weights, ONNX, and the BatchNorm statistics of what was derived."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from compress_helpers import SITES, Net, batches, images, network
from torch import nn

from lightkernels import compress, models
from lightkernels.compress import Architecture, ArchitectureError, Selection

SETS = ["N_3x3", "N_3x3_2", "C_3x3_4", "Sep_5x5", "Fire", "RSDC_5x5", "Multi_357", "Dil_res_3x3_4"]


def supernet(choose=None):
    """A supernet whose BatchNorm statistics are not the initial ones, at the operators ``choose``."""
    net, plan = compress.reconstruct(network(), images(), SETS, order="paper")
    chosen = choose or [1, 2, 4, 7]
    for selection, i in zip(compress.selections(net).values(), chosen, strict=True):
        selection.set_index(i)
    net.train()
    with torch.no_grad():
        for x, _ in batches():
            net(x)
    return net.eval(), plan


@pytest.mark.parametrize("choose", [[0, 1, 2, 3], [4, 5, 6, 7], [7, 6, 3, 5]])
def test_derived_equals_the_active_path(choose):
    net, plan = supernet(choose)
    derived, architecture = compress.derive(net, plan)
    assert torch.equal(derived(images()), net(images()))
    assert not any(isinstance(m, Selection) for m in derived.modules())
    assert not any("alpha" in name for name in derived.state_dict())
    assert list(architecture.operators.values()) == [SETS[i] for i in choose]
    loss = derived.train()(images()).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in derived.parameters())
    assert isinstance(net.get_submodule(SITES[0]), Selection)  # the supernet is still there


def test_recalibrated_statistics_are_those_of_the_loader():
    net, plan = supernet()
    derived, _ = compress.derive(net, plan, batches())
    norm = next(m for m in derived.get_submodule("block1.conv1").modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda module, args, output: seen.append(args[0].mean((0, 2, 3))))
    for m in derived.modules():
        m.training = isinstance(m, nn.BatchNorm2d)
    before = {k: v.clone() for k, v in derived.state_dict().items()}
    with torch.no_grad():
        for x, _ in batches():
            derived(x)
    torch.testing.assert_close(before["block1.conv1.norm.running_mean"], torch.stack(seen).mean(0))
    assert norm.momentum == 0.1 and int(before["block1.conv1.norm.num_batches_tracked"]) == 3
    with pytest.raises(ValueError, match=r"loader must give a batch"):
        compress.derive(net, plan, [])
    with pytest.raises(ValueError, match=r"derive: model must have selection operators at .*without a wrapper"):
        compress.derive(nn.Sequential(net), plan)


@pytest.mark.parametrize("weights", ["safetensors", "torch"])
def test_what_is_saved_loads_and_is_equal(tmp_path, weights):
    if weights == "safetensors":
        pytest.importorskip("safetensors")
    net, plan = supernet()
    derived, architecture = compress.derive(net, plan)
    compress.save(tmp_path, derived, architecture, weights=weights)
    name = {"safetensors": "weights.safetensors", "torch": "weights.pt"}[weights]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["architecture.json", name]
    fresh = Net()
    loaded, again = compress.load(tmp_path, fresh)
    assert again == architecture and not loaded.training
    assert torch.equal(loaded(images()), derived.eval()(images()))
    assert isinstance(fresh.block1.conv1, nn.Conv2d)
    if weights == "torch":
        state = torch.load(tmp_path / name, weights_only=True)
        assert state.keys() == derived.state_dict().keys()


def test_a_network_of_the_zoo_loads_by_its_name(tmp_path):
    torch.manual_seed(0)
    options = {"name": "cifar_resnet20", "num_classes": 4}
    net, plan = compress.reconstruct(models.create_model("cifar_resnet20", num_classes=4), images(), "SOP8")
    derived, architecture = compress.derive(net, plan, network=options)
    compress.save(tmp_path, derived, architecture, weights="torch")
    loaded, _ = compress.load(tmp_path)
    assert torch.equal(loaded(images()), derived.eval()(images()))


def test_a_network_without_memory_takes_stored_weights():
    net, plan = supernet([1, 2, 4, 7])
    derived, architecture = compress.derive(net, plan)
    for assign in (True, False):
        with torch.device("meta"):
            made = architecture.apply(Net())
        made = made if assign else made.to_empty(device="cpu")
        made.load_state_dict(derived.state_dict(), assign=assign)
        torch.testing.assert_close(made.eval()(images()), derived.eval()(images()))


def test_files_that_do_not_fit_say_why(tmp_path):
    net, plan = supernet()
    derived, architecture = compress.derive(net, plan)
    compress.save(tmp_path, derived, architecture, weights="torch")
    with pytest.raises(ArchitectureError, match=r"load: network must be given.*Hint: load\(folder, network\)"):
        compress.load(tmp_path)
    with pytest.raises(
        ArchitectureError, match=r"block1.conv1 must be a layer of 16 to 16 .*; got no such layer. Hint"
    ):
        compress.load(tmp_path, nn.Sequential(nn.Conv2d(3, 8, 3)))
    other = Net()
    other.block1.conv1 = nn.Conv2d(16, 8, 3)
    with pytest.raises(ArchitectureError, match=r"got a layer of 16 to 8 channels, stride 1"):
        compress.load(tmp_path, other)
    with pytest.raises(ArchitectureError, match=r"weights in .* must fit the network"):
        compress.load(tmp_path, Net(classes=7))
    path, text = tmp_path / "architecture.json", architecture.to_json()
    assert Architecture.from_json(text) == architecture
    for wrong in ("{", "[]", json.dumps({"format": "other"}), text.replace('"operator"', '"op"')):
        with pytest.raises(ArchitectureError, match=r"must be what Architecture.to_json wrote"):
            Architecture.from_json(wrong)
    with pytest.raises(ArchitectureError, match=r"must have format version 1; got version 2, written by lightkernels"):
        Architecture.from_json(text.replace('"version": 1', '"version": 2'))
    path.write_text(text.replace("N_3x3_2", "N_3x3_nought"))
    with pytest.raises(ValueError, match=r"N_3x3_nought"):
        compress.load(tmp_path, Net())
    for wrong in (b"\xff\xfe", text.replace('"network": null', '"network": [1]').encode()):
        path.write_bytes(wrong)
        with pytest.raises(ArchitectureError, match=r"architecture.json must be what Architecture.to_json wrote"):
            compress.load(tmp_path, Net())
    path.write_text(text)
    (tmp_path / "weights.pt").write_bytes(b"PK")
    with pytest.raises(ArchitectureError, match=r"weights.pt must be whole"):
        compress.load(tmp_path, Net())


def test_a_missing_extra_says_which_pip_command_mends_it(tmp_path, monkeypatch):
    from lightkernels.compress import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    net, plan = supernet()
    derived, architecture = compress.derive(net, plan)
    with pytest.raises(ImportError, match=r'safetensors must be installed.*pip install "lightkernels\[export\]"'):
        compress.save(tmp_path, derived, architecture)
    with pytest.raises(ImportError, match=r'matplotlib must be installed.*pip install "lightkernels\[train\]"'):
        compress.compress(network(), batches(), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_onnx_at_two_batch_sizes(tmp_path):
    """The shuffles must not fix the batch: exported at 2, run at 5 by ONNX's own reference evaluator."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    net, plan = supernet([1, 2, 4, 7])
    derived = compress.plain(compress.derive(net, plan)[0]).eval()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package is the old one, and says so
        torch.onnx.export(
            derived,
            (images(2),),
            str(path),
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
            opset_version=17,
        )
    evaluator = ReferenceEvaluator(onnx.load(str(path)))
    for number in (2, 5):
        (found,) = evaluator.run(None, {"x": images(number).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), derived(images(number)), rtol=1e-4, atol=1e-5)


def test_derived_layers_compile_whole_and_networks_trace():
    net, plan = supernet([4, 7, 2, 1])
    derived = compress.derive(net, plan)[0]
    layer, x = derived.get_submodule(SITES[0]), torch.randn(2, 16, 4, 4)  # a Fire, whose norms are two
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, that it is old
        traced = torch.jit.trace(derived.eval(), images(2))
    torch.testing.assert_close(traced(images(5)), derived(images(5)))


def test_torch_export_with_any_batch():
    net, plan = supernet([0, 3, 5, 6])
    derived = compress.derive(net, plan)[0].eval()
    exported = torch.export.export(derived, (images(4),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    torch.testing.assert_close(exported.module()(images(7)), derived(images(7)))
