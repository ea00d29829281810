"""Which parameters of a model are prunable, by what names they may be skipped, and how sparse they
and their output channels are.
"""

from __future__ import annotations

import difflib
import operator

import paddle
from paddle import nn

from unstructured_pruning import masking

NORMS = (
    nn.BatchNorm,
    nn.BatchNorm1D,
    nn.BatchNorm2D,
    nn.BatchNorm3D,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.InstanceNorm1D,
    nn.InstanceNorm2D,
    nn.InstanceNorm3D,
    nn.LocalResponseNorm,
    nn.SpectralNorm,
)
TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)


def default_skip_params(model: nn.Layer) -> set[str]:
    """Structured names of what is not pruned: normalisation layers, parameters below two dims."""
    skipped = {name for name, p in model.named_parameters() if len(p.shape) < 2}
    for prefix, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, NORMS):
            skipped.update(name for name, _ in layer.named_parameters(prefix=prefix))
    return skipped


def skip_all_but_conv1x1(model: nn.Layer) -> set[str]:
    """Structured names of all but the weights of 1x1 convolutions."""
    return {name for name, p in model.named_parameters() if not is_conv1x1(p)}


def is_conv1x1(param: paddle.Tensor) -> bool:
    return len(param.shape) == 4 and list(param.shape[2:]) == [1, 1]


def prunable_parameters(model: nn.Layer, skip_params=None) -> dict[str, paddle.Tensor]:
    """Structured name -> parameter, in the model's order, each once, without the skipped ones.

    Raises:
        ValueError: a skipped name is not in the model or means two things, or nothing is left to
            prune.
    """
    model = unwrap(model)
    skip_params = default_skip_params(model) if skip_params is None else skip_params
    meant = _names_of_parameters(model)
    # In Paddle a BatchNorm's running mean and variance are parameters; they are no weights.
    skipped = {
        id(p)
        for layer in model.sublayers(include_self=True)
        if isinstance(layer, NORMS)
        for p in layer.parameters()
        if p.stop_gradient
    }
    for name in sorted(skip_params):
        if name not in meant:
            close = difflib.get_close_matches(name, meant, n=3, cutoff=0.3) or list(meant)[:3]
            raise ValueError(
                f"no layer or parameter is named {name!r}; there are {', '.join(close)}, ..."
            )
        meanings = meant[name]
        if len(set(map(frozenset, meanings.values()))) > 1:
            named = [(n, id(p)) for n, p in model.named_parameters()]
            each = (
                f"as {kind} {listed([n for n, i in named if i in ids])}"
                for kind, ids in meanings.items()
            )
            raise ValueError(
                f"{name!r} means different parameters: {'; '.join(each)}. Give the structured "
                "names of the parameters"
            )
        skipped |= set.union(*meanings.values())
    weights = {
        name: p
        for name, p in model.named_parameters()
        if id(p) not in skipped and p.is_floating_point() and masking.size(p)
    }
    if not weights:
        raise ValueError("there is nothing to prune: every parameter of the model is skipped")
    return weights


def _names_of_parameters(model: nn.Layer) -> dict[str, dict[str, set[int]]]:
    """Every name that means parameters of the model -> as what kind of name -> their ids."""
    meant: dict[str, dict[str, set[int]]] = {}

    def add(name: str, kind: str, parameters) -> None:
        meant.setdefault(name, {}).setdefault(kind, set()).update(map(id, parameters))

    known = set(map(id, model.parameters()))
    for name, p in model.state_dict().items():  # a shared layer stands here under each of its names
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            add(".".join(parts[:end]), "a structured name", [p] if id(p) in known else [])
    for layer in model.sublayers(include_self=True):  # a full_name() is also that of copies
        add(layer.full_name(), "a layer's full_name()", layer.parameters())
    for p in model.parameters():
        add(p.name, "a parameter's Paddle name", [p])
    return meant


def sparsity(parameters: dict[str, paddle.Tensor]) -> float:
    """Zeros over all weights of the parameters, as a fraction; 0.0 where there are no weights."""
    total = sum(masking.size(p) for p in parameters.values())
    return sum(masking.zeros(p) for p in parameters.values()) / total if total else 0.0


def lost_channels(
    model: nn.Layer, parameters: dict[str, paddle.Tensor]
) -> dict[str, tuple[int, int]]:
    """Of each parameter with output channels whose weights are all 0: how many, of how many.

    (Parameters below two dimensions have none.)
    """
    parameters = {name: p for name, p in parameters.items() if len(p.shape) > 1}
    if not parameters:
        return {}
    layers = unwrap(model).sublayers(include_self=True)
    owners = {id(p): layer for layer in layers for p in layer.parameters(include_sublayers=False)}
    shapes = [_by_channel(owners[id(p)], p.shape) for p in parameters.values()]
    kept = [p.astype("bool").reshape(s).any([1, 3]) for p, s in zip(parameters.values(), shapes)]
    counts = paddle.stack([channels.astype("int64").sum() for channels in kept]).tolist()
    channels = [groups * outputs for groups, _, outputs, _ in shapes]
    lost = {name: (n - count, n) for name, n, count in zip(parameters, channels, counts)}
    return {name: (n, of) for name, (n, of) in lost.items() if n}


def _by_channel(layer: nn.Layer, shape: list[int]) -> list[int]:
    """The shape as [groups, inputs, output channels of a group, the rest of a kernel]."""
    if isinstance(layer, TRANSPOSED):  # [C_in, C_out / groups, ...]
        return [layer._groups, shape[0] // layer._groups, shape[1], -1]
    if len(shape) == 2 and not isinstance(layer, nn.RNNCellBase):  # [C_in, C_out], for x @ weight
        return [1, shape[0], shape[1], 1]
    return [1, 1, shape[0], -1]  # [C_out, ...]


def sparsity_table(model: nn.Layer, prunable: dict[str, paddle.Tensor]) -> str:
    """A line for each prunable parameter, then for all of those, the rest, and everything.

    `channels` tells, where output channels have no weight left, how many of how many have one.
    """
    lost = lost_channels(model, prunable)
    rows = [
        (name, str(list(p.shape)), masking.size(p), masking.zeros(p), lost.get(name))
        for name, p in prunable.items()
    ]
    everything = dict(unwrap(model).named_parameters()).values()
    weights, zeros = sum(row[2] for row in rows), sum(row[3] for row in rows)
    all_weights, all_zeros = sum(map(masking.size, everything)), sum(map(masking.zeros, everything))
    rows.append(("prunable", "", weights, zeros, None))
    rows.append(("not pruned", "", all_weights - weights, all_zeros - zeros, None))
    rows.append(("all", "", all_weights, all_zeros, None))
    cells = [("layer", "shape", "weights", "zeros", "sparsity", "channels")]
    for name, shape, size, zero, channels in rows:
        fraction = f"{zero / size:.2%}" if size else "-"
        left = f"{channels[1] - channels[0]}/{channels[1]}" if channels else ""
        cells.append((name, shape, f"{size:,}", f"{zero:,}", fraction, left))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        " ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    )


class Parts:
    """The layers and parameters that a model holds, to notice when others take their places."""

    def __init__(self, model: nn.Layer, weights: dict[str, paddle.Tensor]):
        # All layers that hold others, and those that hold the weights.
        ids = set(map(id, weights.values()))
        self._holders: list[dict] = []
        for layer in unwrap(model).sublayers(include_self=True):
            if layer._sub_layers:
                self._holders += [layer._sub_layers, layer._parameters]
            elif not ids.isdisjoint(map(id, layer._parameters.values())):
                self._holders.append(layer._parameters)
        self._parts = self._now()

    def _now(self) -> list:
        # dict's values(): an OrderedDict's own take twice the time.
        return [part for holder in self._holders for part in dict.values(holder)]

    def unchanged(self) -> bool:
        now = self._now()
        return len(now) == len(self._parts) and all(map(operator.is_, now, self._parts))


def listed(names) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def unwrap(model: nn.Layer) -> nn.Layer:
    if not paddle.in_dynamic_mode():
        raise ValueError("pruning needs dynamic graphs: call paddle.disable_static() first")
    if not isinstance(model, nn.Layer):
        give = "its .network" if isinstance(model, paddle.Model) else "the network itself"
        raise ValueError(f"model must be a paddle.nn.Layer, got {type(model)}: give {give}")
    return model._layers if isinstance(model, paddle.DataParallel) else model
