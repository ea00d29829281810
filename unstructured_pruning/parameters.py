"""Which parameters of a model are prunable, by what names they may be skipped, and how sparse they
and their output channels are.
"""

from __future__ import annotations

import difflib
import operator

import paddle
from paddle import nn

from unstructured_pruning.blocks import size

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

    A name with two meanings is not guessed at: Paddle counts its names up in each process, so that
    other layers would stay dense from run to run.

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
        if id(p) not in skipped and p.is_floating_point() and size(p)
    }
    if not weights:
        raise ValueError("there is nothing to prune: every parameter of the model is skipped")
    return weights


def _names_of_parameters(model: nn.Layer) -> dict[str, dict[str, set[int]]]:
    """Every name that means parameters of the model -> as what kind of name -> their ids."""
    meant: dict[str, dict[str, set[int]]] = {}

    def add(name: str, kind: str, parameters) -> None:
        meant.setdefault(name, {}).setdefault(kind, set()).update(map(id, parameters))

    own = set(map(id, model.parameters()))
    for name, p in model.state_dict().items():  # a shared layer stands here under each of its names
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            add(".".join(parts[:end]), "a structured name", [p] if id(p) in own else [])
    for layer in model.sublayers(include_self=True):  # a full_name() is also that of copies
        add(layer.full_name(), "a layer's full_name()", layer.parameters())
    for p in model.parameters():
        add(p.name, "a parameter's Paddle name", [p])
    return meant


def zeros(tensor: paddle.Tensor) -> int:
    # Paddle's == and != take numbers below 1e-8 (2.6) or 1e-15 (3.3) for 0; the cast does not.
    return size(tensor) - int(paddle.count_nonzero(tensor.astype("bool")))


def sparsity(parameters: dict[str, paddle.Tensor]) -> float:
    """Zeros over all weights of the parameters, as a fraction; 0.0 where there are no weights."""
    total = sum(size(p) for p in parameters.values())
    return sum(zeros(p) for p in parameters.values()) / total if total else 0.0


def lost_channels(
    model: nn.Layer, parameters: dict[str, paddle.Tensor]
) -> dict[str, tuple[int, int]]:
    """Of each parameter with output channels whose weights are all 0: how many, of how many.

    (Parameters below two dimensions have none.)
    """
    shapes = by_channel(model, parameters)
    if not shapes:
        return {}
    kept = [parameters[n].astype("bool").reshape(s).any([1, 3]) for n, s in shapes.items()]
    counts = paddle.stack([channels.astype("int64").sum() for channels in kept]).tolist()
    channels = [groups * outputs for groups, _, outputs, _ in shapes.values()]
    lost = {name: (n - count, n) for name, n, count in zip(shapes, channels, counts)}
    return {name: (n, of) for name, (n, of) in lost.items() if n}


def by_channel(model: nn.Layer, parameters: dict[str, paddle.Tensor]) -> dict[str, list[int]]:
    """Of each with output channels its shape as [groups, inputs, outputs of a group, the rest]."""
    layers = unwrap(model).sublayers(include_self=True)
    owners = {id(p): layer for layer in layers for p in layer.parameters(include_sublayers=False)}
    parameters = {name: p for name, p in parameters.items() if len(p.shape) > 1}
    return {name: _by_channel(owners[id(p)], p.shape) for name, p in parameters.items()}


def _by_channel(layer: nn.Layer, shape: list[int]) -> list[int]:
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
        (name, str(list(p.shape)), size(p), zeros(p), lost.get(name))
        for name, p in prunable.items()
    ]
    everything = dict(unwrap(model).named_parameters()).values()
    pruned = [sum(row[i] for row in rows) for i in (2, 3)]
    all_of = [sum(map(count, everything)) for count in (size, zeros)]
    rows.append(("prunable", "", *pruned, None))
    rows.append(("not pruned", "", all_of[0] - pruned[0], all_of[1] - pruned[1], None))
    rows.append(("all", "", *all_of, None))
    cells = [("layer", "shape", "weights", "zeros", "sparsity", "channels")]
    for name, shape, weights, zero, channels in rows:
        fraction = f"{zero / weights:.2%}" if weights else "-"
        left = f"{channels[1] - channels[0]}/{channels[1]}" if channels else ""
        cells.append((name, shape, f"{weights:,}", f"{zero:,}", fraction, left))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        " ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    )


class Parts:
    """The layers and parameters that a model holds, to notice when others take their places."""

    def __init__(self, model: nn.Layer, weights: dict[str, paddle.Tensor], skip_params_func):
        self._model, self._weights, self._skip_params_func = model, weights, skip_params_func
        self._look()

    def _look(self) -> None:
        """Notes all layers that hold others, and those that hold the weights."""
        weights = set(map(id, self._weights.values()))
        self._holders: list[dict] = []
        for layer in self._model.sublayers(include_self=True):
            if layer._sub_layers:
                self._holders += [layer._sub_layers, layer._parameters]
            elif not weights.isdisjoint(map(id, layer._parameters.values())):
                self._holders.append(layer._parameters)
        self._parts = self._now()

    def _now(self) -> list:
        # dict's values(): an OrderedDict's own take twice the time.
        return [part for holder in self._holders for part in dict.values(holder)]

    def check(self) -> None:
        """Only where a layer holds other objects than before, all names are looked up again.

        Raises:
            ValueError: the prunable weights are not those of before.
        """
        now, before = self._now(), self._weights
        if len(now) == len(self._parts) and all(map(operator.is_, now, self._parts)):
            return
        try:
            weights = prunable_parameters(self._model, set(self._skip_params_func(self._model)))
            wrong = listed(n for n in {**before, **weights} if before.get(n) is not weights.get(n))
        except ValueError as error:  # a skipped name is gone
            wrong = str(error)
        if wrong:
            raise ValueError(
                f"the model has other weights than when the pruner was made ({wrong}): make a new "
                "pruner after replacing layers or parameters"
            )
        self._look()


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
