"""Saving and resuming."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from pruned_nets import masks_of, net_of, stepped

from unstructured_pruner import UnstructuredPruner


def as_they_are(state, folder):
    return state


def masks_as_numpy(state, folder):
    return {**state, "masks": {name: mask.numpy() for name, mask in state["masks"].items()}}


def from_a_file(state, folder):
    paddle.save(state, str(folder / "pruner.pdprune"))
    return paddle.load(str(folder / "pruner.pdprune"))


def from_a_file_as_numpy(state, folder):
    paddle.save(state, str(folder / "pruner.pdprune"))
    return paddle.load(str(folder / "pruner.pdprune"), return_numpy=True)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("way", [as_they_are, masks_as_numpy, from_a_file, from_a_file_as_numpy])
def test_state_dict_round_trip(way, static, tmp_path):
    net = net_of([[1, 2, 3, 4]], [[5, 0.5]])
    pruner = stepped(net, "ratio", ratio=0.5)
    if static:
        pruner.set_static_masks()
    other = net_of([[9, 9, 9, 9]], [[9, 9]])
    resumed = UnstructuredPruner(other, "ratio", ratio=0.5)
    resumed.set_state_dict(way(pruner.state_dict(), tmp_path))
    assert masks_of(resumed) == masks_of(pruner) == [[[0, 0, 1, 1]], [[1, 0]]]
    assert resumed.threshold == pruner.threshold == 3
    assert resumed.masks["w0"].dtype == paddle.bool
    assert other.w0.numpy().tolist() == [[0, 0, 9, 9]]  # applied at once
    assert other.w1.numpy().tolist() == [[9, 0]]
    other.w0.set_value(np.float32([[9, 8, 1, 2]]))
    resumed.step()
    wanted = [[[0, 0, 1, 1]], [[1, 0]]] if static else [[[1, 1, 0, 0]], [[1, 0]]]
    assert masks_of(resumed) == wanted
    assert masks_of(pruner) == [[[0, 0, 1, 1]], [[1, 0]]]  # which shares no memory with it


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (net_of([[1, 2, 3]]), "w0"),  # another shape
        (net_of([[1, 2]], [[3]]), "w1"),  # one too many
        (nn.Linear(1, 2), "w0, weight"),  # another name
    ],
    ids=["shape", "number", "name"],
)
def test_masks_of_another_model_are_refused(foreign, message):
    pruner = stepped(net_of([[1, 2]]), "ratio", ratio=0.5)
    state = stepped(foreign, "ratio", ratio=1).state_dict()
    with pytest.raises(ValueError, match=f"do not fit the model: {message}$"):
        pruner.set_state_dict(state)
    assert masks_of(pruner) == [[[0, 1]]]
    assert pruner.threshold == 2


def test_masks_of_a_part_of_the_model_are_refused():
    pruner = UnstructuredPruner(net_of([[1, 2]], [[3]]), "ratio")
    with pytest.raises(ValueError, match=r"do not fit the model: w1$"):
        pruner.set_state_dict(UnstructuredPruner(net_of([[1, 2]]), "ratio").state_dict())


def test_a_state_that_lacks_something_changes_nothing():
    pruner = stepped(net_of([[1, 2]]), "ratio", ratio=0.5)
    state = UnstructuredPruner(net_of([[1, 2]]), "ratio").state_dict()
    del state["iteration"]
    with pytest.raises(KeyError):
        pruner.set_state_dict(state)
    assert masks_of(pruner) == [[[0, 1]]]


def test_thresholds_of_an_earlier_step_decide_nothing():
    net = net_of([[1, 2, 3, 4]], [[5, 6, 7, 8]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, local_sparsity=True)
    pruner.step()
    other = UnstructuredPruner(net, "ratio", ratio=0.5)
    other.set_state_dict(pruner.state_dict())
    assert other.thresholds == pruner.thresholds != {}
    other.ratio = 0.75
    other.step()
    assert masks_of(other) == [[[0, 0, 0, 0]], [[0, 0, 1, 1]]]
