"""What was found, as data: operators by layer in JSON beside the weights, and the network made again from them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightkernels import models
from lightkernels._core.spec import fail_type, message
from lightkernels._version import __version__
from lightkernels.compress.extras import need
from lightkernels.compress.operators import build_operator
from lightkernels.nn._arguments import one_of
from lightkernels.nn.convert import convert
from lightkernels.train.files import atomic_write

FORMAT = "lightkernels architecture"
VERSION = 1
WeightsFormat = Literal["safetensors", "torch"]
_FILES = {"safetensors": "weights.safetensors", "torch": "weights.pt"}


class ArchitectureError(ValueError):
    """The file is no architecture of ours, of a version that this release cannot read, or it fits another network."""


@dataclass(frozen=True)
class Layer:
    """One replaced layer; ``norm`` is the BatchNorm that went with it."""

    name: str
    operator: str
    in_channels: int
    out_channels: int
    stride: int
    norm: str | None


@dataclass(frozen=True)
class Architecture:
    """The operators by layer; ``network`` may name one of the zoo, with its options: {"name", "num_classes", ...}."""

    layers: tuple[Layer, ...]
    network: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    written_by: str = __version__

    @property
    def operators(self) -> dict[str, str]:
        return {layer.name: layer.operator for layer in self.layers}

    def to_json(self) -> str:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "the text") -> Architecture:
        """Raises ArchitectureError for a text that ``to_json`` did not write."""
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise KeyError("format")
            version = content.pop("version")
            if version != VERSION:
                raise ArchitectureError(
                    f"architecture: {where} must have format version {VERSION}; got version {version}, written by "
                    f"lightkernels {content.get('written_by', 'unknown')}. Hint: compress again with this release"
                )
            layers = tuple(Layer(**layer) for layer in content.pop("layers"))
            network = content.get("network")
            if network is not None and not isinstance(network["name"], str):
                raise KeyError("name")
            return cls(layers, **content)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            reason = f"another text ({type(error).__name__}: {error})"
            raise ArchitectureError(
                message("architecture", where, "be what Architecture.to_json wrote", reason)
            ) from error

    def apply(self, network: nn.Module) -> nn.Module:
        """A copy of the uncompressed ``network`` with fresh operators in the places of its layers.

        Raises:
            ArchitectureError: where the network lacks a layer, or has another one in its place.
        """
        if not isinstance(network, nn.Module):
            fail_type("architecture", "network", "be an nn.Module", network)
        modules = dict(network.named_modules())
        for layer in self.layers:
            self._fits(layer, modules)
        by_name, norms = {layer.name: layer for layer in self.layers}, {layer.norm for layer in self.layers}
        like = next(network.parameters(), torch.empty(0))

        def rule(name: str, module: nn.Module) -> nn.Module | str | None:
            if name in by_name:
                found = by_name[name]
                made = build_operator(found.operator, found.in_channels, found.out_channels, found.stride)
                return made.to(device=like.device, dtype=like.dtype).train(module.training)
            return nn.Identity() if name in norms else None

        made, report = convert(network, rule)
        missed = [row for row in report.kept if row.name in by_name or row.name in norms]
        if missed:
            raise ArchitectureError(
                f"architecture: {missed[0].name} must be replaced by {self.operators.get(missed[0].name, 'nothing')}; "
                f"got {missed[0].why}."
            )
        return made

    def _fits(self, layer: Layer, modules: Mapping[str, nn.Module]) -> None:
        module = modules.get(layer.name)
        asked = f"a layer of {layer.in_channels} to {layer.out_channels} channels, stride {layer.stride}"
        got = "no such layer" if module is None else _shape(module)
        pool = isinstance(module, nn.MaxPool2d) and layer.in_channels == layer.out_channels
        if not pool and got != asked:
            hint = "give the network that was compressed, as it was before"
            raise ArchitectureError(f"architecture: {layer.name} must be {asked}; got {got}. Hint: {hint}")
        if layer.norm is not None and layer.norm not in modules:
            raise ArchitectureError(f"architecture: the network must have a layer {layer.norm}; got none.")


def _shape(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__}"
    stride = module.stride[0] if module.stride[0] == module.stride[1] else module.stride
    return f"a layer of {module.in_channels} to {module.out_channels} channels, stride {stride}"


def save(
    folder: str | Path, model: nn.Module, architecture: Architecture, weights: WeightsFormat = "safetensors"
) -> None:
    """Writes ``architecture.json`` and the weights of the derived ``model``, each file whole or not at all.

    Args:
        weights: ``"safetensors"`` (needs the ``export`` extra) or ``"torch"`` (``weights.pt``; torch alone).

    Raises:
        ImportError: without safetensors; the message has the pip command.
    """
    one_of("save", "weights", weights, _FILES)
    folder = Path(folder)
    # Copies: tensors that share memory are stored once each, as safetensors asks.
    state = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    if weights == "safetensors":
        need("safetensors", "export")
        from safetensors.torch import save as to_bytes

        with atomic_write(folder / _FILES[weights]) as temporary:
            temporary.write_bytes(to_bytes(state, metadata={"format": "pt"}))
    else:
        with atomic_write(folder / _FILES[weights]) as temporary:
            torch.save(state, temporary)
    with atomic_write(folder / "architecture.json") as temporary:
        temporary.write_text(architecture.to_json() + "\n", encoding="utf-8")
    for other in set(_FILES.values()) - {_FILES[weights]}:
        (folder / other).unlink(missing_ok=True)  # of an earlier run: two files of weights would contradict


def load(folder: str | Path, network: nn.Module | None = None) -> tuple[nn.Module, Architecture]:
    """The derived network from what :func:`save` wrote, in evaluation mode. No code from the files is run.

    Args:
        network: the uncompressed network (any weights); it is left as it is. None where the architecture names one of
            the zoo.

    Raises:
        FileNotFoundError: without such files.
        ArchitectureError: where files or network do not fit.
    """
    folder = Path(folder)
    where = folder / "architecture.json"
    architecture = Architecture.from_json(where.read_text(encoding="utf-8", errors="replace"), str(where))
    if network is None:
        if architecture.network is None:
            raise ArchitectureError(
                message("load", "network", "be given, as the architecture names none of the zoo", None,
                        hint="load(folder, network), with the uncompressed network")
            )  # fmt: skip
        options = dict(architecture.network)
        network = models.create_model(options.pop("name"), **options)
    made = architecture.apply(network)
    state = _state(folder)
    try:
        made.load_state_dict(state)
    except RuntimeError as error:
        raise ArchitectureError(
            f"load: the weights in {folder} must fit the network; got {str(error)[:400]}"
        ) from error
    return made.eval(), architecture


def _state(folder: Path) -> dict[str, Tensor]:
    if (folder / _FILES["safetensors"]).exists():
        need("safetensors", "export")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(folder / _FILES["safetensors"]))
        except SafetensorError as error:
            raise ArchitectureError(f"load: {folder / _FILES['safetensors']} must be whole; got {error}") from error
    path = folder / _FILES["torch"]
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as error:
        raise ArchitectureError(f"load: {path} must be whole; got {str(error).splitlines()[0]}") from error
