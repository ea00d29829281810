"""Which parameters are pruned, and by what names they are skipped."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest
from paddle import nn
from pruned_nets import PADDLE_2, ConvNet, masks_of, net_of, stepped

from unstructured_pruner import UnstructuredPruner, default_skip_params


def test_a_bare_layer():
    net = nn.Linear(2, 2)
    net.weight.set_value(np.float32([[1, 2], [3, 4]]))
    assert masks_of(stepped(net, "ratio", ratio=0.5)) == [[[0, 0], [1, 1]]]


def test_parameters_of_the_root_and_of_its_sublayers():
    net = net_of([[1, 2]])
    net.fc = nn.Linear(1, 2)
    net.fc.weight.set_value(np.float32([[0.5, 3]]))
    pruner = stepped(net, "ratio", ratio=0.5)
    assert list(pruner.masks) == ["w0", "fc.weight"]
    assert masks_of(pruner) == [[[0, 1]], [[0, 1]]]


def tied_net() -> nn.Layer:
    net = nn.Layer()
    net.a, net.b, net.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
    net.b.weight = net.a.weight
    net.a.weight.set_value(np.arange(1, 10, dtype="float32").reshape(3, 3))
    net.c.weight.set_value(np.float32([[10, 11], [12, 13], [14, 15]]))
    return net


def test_a_shared_parameter_counts_once():
    net = tied_net()
    pruner = stepped(net, "ratio", ratio=0.6)  # 9 of 15
    assert list(pruner.masks) == ["a.weight", "c.weight"]
    assert pruner.threshold == 10
    assert pruner.prunable_sparsity() == 0.6
    assert UnstructuredPruner.total_sparse(net) == (9 + 8) / (15 + 8)  # the biases are zeros
    assert (net.b.weight.numpy() == 0).all()


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "a", "b"])
def test_a_shared_parameter_is_skipped_by_each_of_its_names(name):
    pruner = UnstructuredPruner(
        tied_net(), "ratio", skip_params_func=lambda net: {name, "b.bias", "a.bias", "c.bias"}
    )
    assert list(pruner.masks) == ["c.weight"]


def test_a_shared_layer_is_skipped_by_each_of_its_names():
    net = nn.Layer()
    net.a, net.c = nn.Linear(3, 3), nn.Linear(3, 2)
    net.b = net.a  # net.state_dict() lists b.weight, too
    for name in ("b", "b.weight"):
        pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net, name=name: {name})
        assert "a.weight" not in pruner.masks


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
def test_a_data_parallel_model():  # of one process, which needs no init_parallel_env()
    net = nn.Linear(2, 2)
    net.weight.set_value(np.float32([[1, 2], [3, 4]]))
    net.bias.set_value(np.float32([1, 1]))
    wrapped = paddle.DataParallel(net)
    pruner = stepped(wrapped, "ratio", ratio=0.25, skip_params_func=lambda model: {"bias"})
    assert list(pruner.masks) == ["weight"]
    assert pruner.model is wrapped
    assert net.weight.numpy().tolist() == [[0, 2], [3, 4]]
    assert UnstructuredPruner.total_sparse(wrapped) == 1 / 6
    assert UnstructuredPruner.total_sparse_conv1x1(wrapped) == 0
    assert pruner.summarize_weights(wrapped, 0.5) == 3
    assert "_layers" not in str(pruner)
    other = nn.Linear(2, 2)  # masks pass between the wrapped model and the plain one
    UnstructuredPruner(other, "ratio").set_state_dict(pruner.state_dict())
    assert int((other.weight.numpy() == 0).sum()) == 1


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm(2),
        nn.BatchNorm1D(2),
        nn.BatchNorm2D(2),
        nn.BatchNorm3D(2),
        nn.SyncBatchNorm(2),
        nn.GroupNorm(1, 2),
        nn.LayerNorm(2),
        nn.InstanceNorm1D(2),
        nn.InstanceNorm2D(2),
        nn.InstanceNorm3D(2),
        nn.LocalResponseNorm(2),
        nn.SpectralNorm([2, 2]),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_are_skipped_by_default_whatever_their_parameters_dimensions(norm):
    norm.add_parameter("square", norm.create_parameter([2, 2]))
    net = nn.Sequential(nn.Linear(2, 2), norm)
    assert default_skip_params(net) == {"0.bias", *(f"1.{n}" for n, _ in norm.named_parameters())}
    assert list(UnstructuredPruner(net, "ratio").masks) == ["0.weight"]


def test_one_dimensional_parameters_are_skipped_by_default():
    net = net_of([1, 2], [[3, 4]], [[[5]]])
    assert default_skip_params(net) == {"w0"}
    assert list(UnstructuredPruner(net, "ratio").masks) == ["w1", "w2"]


@pytest.mark.parametrize(
    ("names", "pruned"),
    [
        (lambda net: {"fc.weight"}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {net.fc.weight.name}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {"fc"}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {net.fc.full_name()}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {"features.0"}, ["features.2.weight", "fc.weight"]),
        (lambda net: {net.features[0].full_name(), "fc"}, ["features.2.weight"]),
        (lambda net: ["features"], ["fc.weight"]),  # a list, and all that a layer contains
        (lambda net: {net.features.full_name()}, ["fc.weight"]),
    ],
)
def test_skip_params_func_takes_each_kind_of_name(names, pruned):
    def skip(net):
        return default_skip_params(net) | set(names(net))

    pruner = UnstructuredPruner(ConvNet(), "ratio", skip_params_func=skip)
    assert sorted(pruner.masks) == sorted(pruned)


def test_skip_params_func_replaces_the_default():
    net = nn.Linear(2, 2)
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: [])
    assert list(pruner.masks) == ["weight", "bias"]
    assert pruner.skip_params == set()
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: ["weight"])
    assert list(pruner.masks) == ["bias"]
    assert pruner.skip_params == {"weight"}


def test_a_name_with_two_meanings_is_refused():
    net, first = nn.Layer(), nn.Linear(2, 2)
    name = first.full_name()
    net.add_sublayer("one", first)
    net.add_sublayer(name, nn.Linear(2, 2))  # say linear_7, as the first calls itself
    wanted = (
        f"'{name}' means different parameters: as a structured name {name}.weight, {name}.bias; "
        r"as a layer's full_name\(\) one.weight, one.bias"
    )
    with pytest.raises(ValueError, match=wanted):
        UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {name})
    for weight in ("one.weight", f"{name}.weight"):  # which have one
        pruner = UnstructuredPruner(
            net, "ratio", skip_params_func=lambda net, weight=weight: {weight, "one.bias"}
        )
        assert weight not in pruner.masks
        assert len(pruner.masks) == 2


def test_a_parameters_own_name_with_two_meanings_is_refused():
    net = nn.Layer()
    net.a, net.b = nn.Linear(2, 2, weight_attr=paddle.ParamAttr(name="b")), nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"b\.bias; as a parameter's Paddle name a\."):
        UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {"b"})


def test_two_names_for_the_same_parameters_are_no_conflict():
    net, layer = nn.Layer(), nn.Linear(2, 2)
    net.add_sublayer(layer.full_name(), layer)
    net.other = nn.Linear(2, 2)
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {layer.full_name()})
    assert list(pruner.masks) == ["other.weight", "other.bias"]


def test_paddleslims_own_skip_function():
    def skip(net):  # full names of layers
        return {layer.full_name() for layer in net.sublayers() if isinstance(layer, nn.LayerNorm)}

    net = nn.Layer()
    net.norm_a, net.fc, net.norm_b = nn.LayerNorm(2), nn.Linear(2, 2), nn.LayerNorm(2)
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=skip)
    assert list(pruner.masks) == ["fc.weight", "fc.bias"]
    # Attributes that are called as Paddle calls its layers, and not in its order.
    net.add_sublayer(net.norm_b.full_name(), nn.LayerNorm(2))
    with pytest.raises(ValueError, match="means different parameters"):
        UnstructuredPruner(net, "ratio", skip_params_func=skip)


def test_all_copies_of_a_layer_have_its_full_name():
    block = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    net = nn.LayerList([copy.deepcopy(block) for _ in range(3)])
    name = net[0][0].full_name()
    assert name == net[2][0].full_name()
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {name})
    assert [n for n in pruner.masks if ".0." in n] == []
    assert len(pruner.masks) == 6  # of the norms
    own = net[1][0].weight.name  # whereas copies of parameters get names of their own
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {own})
    assert [n for n in pruner.masks if n.endswith("0.weight")] == ["0.0.weight", "2.0.weight"]


def test_frozen_weights_are_pruned_unless_they_are_skipped():
    net = ConvNet()
    net.features[0].weight.stop_gradient = True
    assert "features.0.weight" in UnstructuredPruner(net, "ratio").masks
    pruner = UnstructuredPruner(  # as the docstring and README.md have it
        net,
        "ratio",
        skip_params_func=lambda model: (
            default_skip_params(model)
            | {name for name, p in model.named_parameters() if p.stop_gradient}
        ),
    )
    assert list(pruner.masks) == ["features.2.weight", "fc.weight"]


def test_running_statistics_are_never_pruned():
    net = ConvNet()  # whose function forgets the BatchNorm
    pruner = UnstructuredPruner(net, "ratio", ratio=1, skip_params_func=lambda net: {"fc"})
    assert "features.1.weight" in pruner.masks
    assert not [name for name in pruner.masks if name.endswith(("_mean", "_variance"))]


def test_an_unknown_name_is_refused_with_close_ones():
    with pytest.raises(ValueError, match=r"'fc\.wieght'.*fc\.weight"):
        UnstructuredPruner(ConvNet(), "ratio", skip_params_func=lambda net: {"fc.wieght"})


def test_parameters_that_are_not_floats_are_left_alone():
    net = net_of([[1, 2]])
    threes = nn.initializer.Constant(3)
    counts = net.create_parameter([1, 2], dtype="int32", default_initializer=threes)
    net.add_parameter("counts", counts)
    assert list(stepped(net, "ratio", ratio=1).masks) == ["w0"]


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2.6 makes no such parameter")
def test_parameters_without_a_weight_are_left_alone():
    net = net_of([[1, 2]])
    net.add_parameter("empty", net.create_parameter([0, 2]))
    assert list(stepped(net, "ratio", ratio=0.5).masks) == ["w0"]


def test_conv1x1_only():
    net = nn.Sequential(nn.Conv2D(4, 4, 1), nn.Conv2D(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, prune_params_type="conv1x1_only")
    pruner.step()
    assert list(pruner.masks) == ["0.weight"]
    assert UnstructuredPruner.total_sparse_conv1x1(net) == 0.5
