"""Which layer reads what: one forward pass with every call of a function or module noted, for any control flow."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lightkernels._core.spec import fail_type, require
from lightkernels.nn import MultiDepthwiseConv2d, RSDC2d

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
T = TypeVar("T")
# Read a value, though they return no tensor; other functions without tensors among their results read shapes alone.
_READERS = {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__array__"}
CONVOLUTIONS = (nn.Conv2d, MultiDepthwiseConv2d, RSDC2d)
_WATCHED = (*CONVOLUTIONS, nn.modules.batchnorm._BatchNorm, nn.MaxPool2d)


@dataclass(frozen=True)
class Call:
    """One call of a watched module: its values by number, and the sizes of its images."""

    name: str
    read: int
    made: int
    size: tuple[int, int]
    out: tuple[int, int]
    by_name: bool = False  # its input was a keyword argument


@dataclass
class Trace:
    """What one pass showed. ``macs`` are the whole model's multiply-adds for one image.

    ``touched`` are watched modules of which something else asked for a parameter or a buffer.
    """

    calls: list[Call] = field(default_factory=list)
    readers: Counter[int] = field(default_factory=Counter)
    touched: set[str] = field(default_factory=set)
    macs: int = 0

    def of(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def only_reader(self, value: int) -> Call | None:
        """The watched module that alone reads a value, if there is one."""
        found = [call for call in self.calls if call.read == value]
        return found[0] if len(found) == 1 and self.readers[value] == 1 else None


def run(model: nn.Module, example_inputs: Inputs) -> Any:
    """``model`` called with a tensor, a sequence of positional or a mapping of keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return model(example_inputs)
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if not isinstance(example_inputs, Sequence):
        fail_type("reconstruct", "example_inputs", "be a tensor, a sequence or a mapping of arguments", example_inputs)
    return model(*example_inputs)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Those in nested sequences and mappings."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors(item)
    elif isinstance(tree, list | tuple | set):
        for item in tree:
            yield from tensors(item)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.values: dict[int, int] = {}
        self.kept: list[Tensor] = []  # so that no id is given away twice
        self.next = 0
        self.inside = 0

    def read(self, tree: Any) -> list[int]:
        return [self.values.get(id(t)) or self.write(t) for t in tensors(tree)]

    def write(self, tensor: Tensor) -> int:
        self.next += 1
        self.values[id(tensor)] = self.next
        self.kept.append(tensor)
        return self.next

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        read = self.read((args, kwargs))
        result = func(*args, **kwargs)
        made = list(tensors(result))
        if made or getattr(func, "__name__", "") in _READERS:
            self.trace.readers.update(set(read))
        for tensor in made:
            self.write(tensor)
        return result

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.inside += 1

    def spy(self, name: str, module: nn.Module) -> None:
        """Notes who asks for the module's tensors; ``nn.Module`` finds them by ``__getattr__``."""
        kind = type(module)

        def getattr_of(owner: nn.Module, attribute: str) -> Any:
            if not self.inside:
                self.trace.touched.add(name)
            return kind.__getattr__(owner, attribute)

        module.__class__ = type(kind.__name__, (kind,), {"__getattr__": getattr_of})

    def leave(self, name: str, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        self.inside -= 1
        args, by_name = (*args, *kwargs.values()), not args
        if self.inside or not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        (read,) = self.read(args[0])
        self.trace.readers[read] += 1
        if args[0].dim() == 4 and output.dim() == 4:
            (h, w), (ho, wo) = args[0].shape[2:], output.shape[2:]
            self.trace.calls.append(Call(name, read, self.write(output), (h, w), (ho, wo), by_name))
        else:
            self.write(output)


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Runs ``model`` once, in evaluation mode and without gradients, on a copy that keeps no hook of ours.

    Raises:
        TypeError: for a model or inputs of the wrong type. What the model itself raises goes through.
    """
    if not isinstance(model, nn.Module):
        fail_type("reconstruct", "model", "be an nn.Module", model)
    model, recorder = copy.deepcopy(model), _Recorder()

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(recorder.enter, with_kwargs=True)
        module.register_forward_hook(
            lambda _, args, kwargs, output: recorder.leave(name, args, kwargs, output), with_kwargs=True
        )
        if type(module) in (nn.Conv2d, nn.BatchNorm2d):
            recorder.spy(name, module)

    for name, module in model.named_modules():
        if isinstance(module, _WATCHED):
            watch(name, module)
    images = next((t.shape[0] for t in tensors(example_inputs) if t.dim() == 4), 1)
    require(images > 0, "reconstruct", "example_inputs", "have at least one image", images)
    with evaluating(model), FlopCounterMode(display=False) as counter:
        with recorder:
            output = run(model, example_inputs)
        recorder.trace.readers.update(recorder.read(output))
    recorder.trace.macs = int(counter.get_total_flops()) // 2 // images
    return recorder.trace
