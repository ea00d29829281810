"""The model changes after the pruner was made."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn
from pruned_nets import stepped

from unstructured_pruner import GMPUnstructuredPruner, UnstructuredPruner


class Heads(nn.Layer):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))


def new_head(net):
    net.head = nn.Linear(4, 2)


def new_weight(net):
    net.head.weight = net.head.create_parameter([4, 2])


def new_inner_layer(net):
    net.body[0] = nn.Linear(4, 4)


def a_layer_more(net):
    net.body.add_sublayer("more", nn.Linear(4, 4))


def a_parameter_more(net):
    net.head.more = net.head.create_parameter([4, 2])


def a_layer_less(net):
    del net.head


def weight_norm(net):
    nn.utils.weight_norm(net.head)


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
@pytest.mark.parametrize("wrap", [lambda net: net, paddle.DataParallel], ids=["plain", "parallel"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (new_head, "head.weight"),
        (new_weight, "head.weight"),
        (new_inner_layer, "body.0.weight"),
        (a_layer_more, "body.more.weight"),
        (a_parameter_more, "head.more"),
        (a_layer_less, "head.weight"),
        (weight_norm, "head.weight, head.weight_v"),
    ],
)
def test_replaced_weights_are_noticed(change, named, wrap):
    net = Heads()
    pruner = stepped(wrap(net), "ratio", ratio=0.5)
    change(net)
    wanted = rf"has other weights .*\({named}\): make a new pruner"
    for use in (pruner.step, pruner.__str__, pruner.prunable_sparsity, pruner.lost_channels):
        with pytest.raises(ValueError, match=wanted):
            use()
    stepped(wrap(net), "ratio", ratio=0.5)


def test_gmp_notices_replaced_weights_too():
    net = Heads()
    configs = {"stable_iterations": 0, "pruning_iterations": 2, "tunning_iterations": 1,
               "pruning_steps": 1, "initial_ratio": 0.1}  # fmt: skip
    pruner = GMPUnstructuredPruner(net, configs=configs)
    pruner.step()
    new_head(net)
    with pytest.raises(ValueError, match="make a new pruner"):
        pruner.step()


def test_remove_weight_norm_is_noticed():
    net = Heads()
    nn.utils.weight_norm(net.head)
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    for _ in range(2):
        net(paddle.ones([1, 4]))  # which makes head.weight anew
        pruner.step()
    nn.utils.remove_weight_norm(net.head)
    with pytest.raises(ValueError, match="make a new pruner"):
        pruner.step()


def test_a_skipped_name_that_is_gone_is_noticed():
    net = Heads()
    names = {"head", "body.0.bias", "body.1"}
    pruner = stepped(net, "ratio", skip_params_func=lambda net: names)
    a_layer_less(net)
    with pytest.raises(ValueError, match=r"no layer or parameter is named 'head'.*make a new prun"):
        pruner.step()


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
def test_what_leaves_the_weights_alone_may_change(tmp_path):
    net = Heads()
    pruner = stepped(net, "ratio", ratio=0.5)
    net.set_state_dict({name: value * 2 for name, value in net.state_dict().items()})
    pruner.step()
    net.body.add_sublayer("dropout", nn.Dropout(0.5))
    net.body.add_sublayer("norm", nn.LayerNorm(4))
    net.body[0].bias = net.body[0].create_parameter([4], is_bias=True)
    pruner.step()
    assert list(pruner.masks) == ["body.0.weight", "head.weight"]
    paddle.DataParallel(net)
    paddle.save(net.state_dict(), str(tmp_path / "net"))
    net.set_state_dict(paddle.load(str(tmp_path / "net")))
    pruner.step()
    assert pruner.prunable_sparsity() == 0.5
    assert "body.0.weight" in str(pruner)


def test_a_recurrent_network_is_no_change():
    net = nn.LSTM(3, 4)
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    for _ in range(2):
        net(paddle.ones([1, 2, 3]))[0].sum().backward()
        pruner.step()
    assert pruner.prunable_sparsity() == 0.5
