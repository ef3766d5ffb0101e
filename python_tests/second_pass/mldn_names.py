"""The zoo's names of CondenseNet and MLDN, by those of the second pass."""

from .mldn_state import Name

LEAVES = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
HEAD = {
    "stem": "stem.weight",
    "head.excite.down": "excite.squeeze.weight",
    "head.excite.up": "excite.excite.weight",
    "head.hidden": "hidden.0.weight",
    "head.hidden_bias": "hidden.0.bias",
    "head.classify": "classifier.weight",
    "head.classify_bias": "classifier.bias",
}
LAYER = {
    "squeeze": "reduce.weight",
    "mask": "reduce.mask",
    "conv": "conv.weight",
    "conv_bias": "conv.bias",
    "taps": "conv.taps",
    "back": "reactivate.weight",
    "back_mask": "reactivate.mask",
    "excite.down": "excite.squeeze.weight",
    "excite.up": "excite.excite.weight",
    "norm1": "reduce.norm",
    "norm2": "norm",
    "back_norm": "reactivate.norm",
}
RESIDUAL = {"conv1": 0, "norm1": 1, "conv2": 3, "norm2": 4, "conv3": 6, "norm3": 7}
IGNORED = ("num_batches_tracked", "stage")


def of_layer(rest: list[str]) -> str:
    """`rest`: a slot's name behind its layer's."""
    return f"{LAYER[rest[0]]}.{LEAVES[rest[1]]}" if rest[-1] in LEAVES else LAYER[".".join(rest)]


def condensenet(name: str) -> Name:
    return _network(name, "")


def mldn(name: str) -> Name:
    return _network(name, "paths.{p}.")


def mldn_block(name: str) -> Name:
    _, layer, *rest = name.split(".")
    return f"layers.{layer}.paths.{{p}}.{of_layer(rest)}"


def _network(name: str, path: str) -> Name:
    if name in HEAD:
        return HEAD[name]
    stem, _, leaf = name.rpartition(".")
    if stem == "head.norm":
        return f"norm.{LEAVES[leaf]}"
    first, block, *rest = name.split(".")
    if first == "residual":
        return f"preprocess.body.{RESIDUAL[block]}.{LEAVES[rest[0]] if rest else 'weight'}"
    _, layer, *rest = rest
    layers = "layers." if path else ""
    return f"blocks.{2 * int(block)}.{layers}{layer}.{path}{of_layer(rest)}"
