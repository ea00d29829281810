"""What the pruners refuse, and how arguments may be given."""

from __future__ import annotations

import json
import math

import numpy as np
import paddle
import pytest
from paddle import nn
from pruned_nets import ConvNet, net_of

from unstructured_pruner import GMPUnstructuredPruner, UnstructuredPruner

CONFIGS = {"stable_iterations": 1, "pruning_iterations": 4, "tunning_iterations": 2,
           "pruning_steps": 2, "initial_ratio": 0.25}  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [nn.BatchNorm2D(3), nn.ReLU(), nn.Layer()],
    ids=lambda model: type(model).__name__,
)
def test_nothing_to_prune_is_refused(model):
    with pytest.raises(ValueError, match="nothing to prune"):
        UnstructuredPruner(model, "ratio")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda net: net.parameters(), "got <class 'list'>: give the network itself"),
        (lambda net: net.state_dict(), "a paddle.nn.Layer, got <class 'collections.OrderedDict'>"),
        (lambda net: ConvNet, "a paddle.nn.Layer, got <class 'type'>"),
        (paddle.Model, "got <class 'paddle.hapi.model.Model'>: give its .network"),
    ],
)
def test_what_is_no_layer_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner(model(ConvNet()), "ratio")
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner.total_sparse(model(ConvNet()))


def test_static_graph_mode_is_refused():
    net = ConvNet()
    pruner = UnstructuredPruner(net, "ratio")
    paddle.enable_static()
    try:
        with pytest.raises(ValueError, match=r"call paddle.disable_static\(\) first"):
            UnstructuredPruner(net, "ratio")
    finally:
        paddle.disable_static()
    pruner.step()


def test_skipping_everything_is_refused():
    with pytest.raises(ValueError, match="nothing to prune"):
        UnstructuredPruner(ConvNet(), "ratio", skip_params_func=lambda net: {"features", "fc"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse_block": [np.float32(1), 1]}, "sparse_block must be two whole numbers > 0"),
        ({"prune_period": np.int64(0)}, "prune_period must be a whole number >= 1"),
        ({"mode": "gmp"}, "mode must be 'ratio' or 'threshold', got 'gmp'"),
        ({"mode": None}, "mode must be .* got None"),
        ({"ratio": -0.1}, r"ratio must be in \[0, 1\], got -0.1"),
        ({"ratio": 1.2}, r"ratio must be in \[0, 1\], got 1.2"),
        ({"ratio": math.nan}, "ratio must be .* got nan"),
        ({"threshold": -0.01}, "threshold must be a finite number >= 0, got -0.01"),
        ({"threshold": math.inf}, "threshold must be .* got inf"),
        ({"threshold": math.nan}, "threshold must be .* got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner(nn.Linear(2, 2), **{"mode": "ratio", **options})


@pytest.mark.parametrize("ratio", [-0.1, 1.5, math.nan])
def test_a_ratio_out_of_range_is_refused_at_the_step_too(ratio):
    net = net_of([[1, 2]])
    pruner = UnstructuredPruner(net, "ratio")
    pruner.ratio = ratio
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\]"):
        pruner.step()
    assert net.w0.numpy().tolist() == [[1, 2]]


def test_arguments_in_paddleslims_order_and_as_attributes():
    net = nn.Linear(2, 2)
    pruner = UnstructuredPruner(net, "threshold", 0.02, 0.3, None, None, False, [1, 1])
    assert (pruner.model, pruner.mode, pruner.threshold, pruner.ratio) == (
        net,
        "threshold",
        0.02,
        0.3,
    )
    assert (pruner.local_sparsity, pruner.sparse_block) == (False, [1, 1])
    assert pruner.skip_params == {"bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_params_type": "conv"}, "prune_params_type must be None or 'conv1x1_only'"),
        ({"sparse_block": [0, 1]}, "sparse_block must be two whole numbers > 0"),
        ({"sparse_block": [2]}, "sparse_block must be two whole numbers > 0"),
        ({"distribution": "er"}, "distribution must be 'global', 'uniform', 'erk' or a dict"),
        ({"distribution": {"nope": 0.5}}, "no prunable parameter matches 'nope'"),
        ({"distribution": "erk", "local_sparsity": True}, "give one of the two"),
        ({"mode": "threshold", "local_sparsity": True}, "need mode 'ratio'"),
        ({"prune_period": 0}, "prune_period must be a whole number >= 1, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner(nn.Linear(2, 2), **{"mode": "ratio", **options})


@pytest.mark.filterwarnings("error")
def test_numpys_whole_numbers():
    configs = {k: np.int64(v) if type(v) is int else v for k, v in CONFIGS.items()}
    configs["resume_iteration"] = np.int32(3)
    pruner = GMPUnstructuredPruner(
        net_of([range(1, 17)]), ratio=0.75, configs=configs, prune_period=np.int16(2)
    )
    pruner.step()
    assert pruner.prunable_sparsity() == 0.6875
    json.dumps([pruner.configs, pruner.iteration])
    pruner = UnstructuredPruner(net_of([[1, 2]]), "ratio", sparse_block=np.array([1, 2]),
                                prune_period=np.uint8(3))  # fmt: skip
    pruner.step()
    assert json.dumps(pruner.sparse_block) == "[1, 2]"
