"""Moments and float32 originals that an optimizer keeps of pruned weights."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import paddle
import pytest
from paddle import nn

from unstructured_pruner import UnstructuredPruner
from unstructured_pruning import moments


def test_momentum_of_pruned_weights():
    for zeroed in (True, False):
        net = nn.Linear(4, 4)
        opt = paddle.optimizer.Momentum(0.1, parameters=net.parameters())
        pruner = UnstructuredPruner(net, "ratio", ratio=0.5, optimizer=opt if zeroed else None)
        net(paddle.ones([2, 4])).square().sum().backward()
        opt.step()
        pruner.step()
        (velocity,) = [
            v for k, v in opt.state_dict().items() if k == f"{net.weight.name}_velocity_0"
        ]
        pruned = pruner.masks["weight"].numpy() == 0
        assert (velocity.numpy()[pruned] == 0).all() == zeroed
        assert (velocity.numpy()[~pruned] != 0).all()


OPTIMIZERS = [(name, {}) for name in moments.MOMENTS]
OPTIMIZERS += [
    ("Adam", {"amsgrad": True}),
    ("Adam", {"name": "mine"}),  # which stands in the names of the accumulators
    ("ASGD", {"batch_num": 3}),
    ("Momentum", {"use_multi_tensor": True}),
    ("RMSProp", {"centered": True, "momentum": 0.9}),
]
WEIGHTS = np.float32([[0.01, 1, 2, 0.02], [0.02, 3, 0.03, 1.5]])
LARGE = WEIGHTS > 0.5
NO_MOMENTS = """
    beta1_pow_acc beta2_pow_acc beta1_pow beta2_pow rho momentum_decay_pow mu_product learning_rates
    d y m
""".split()  # noqa: SIM905


def make_optimizer(name, parameters, /, **options):
    try:
        return getattr(paddle.optimizer, name)(1e-3, parameters=parameters, **options)
    except (AttributeError, TypeError) as error:
        if paddle.__version__.startswith("2."):
            pytest.skip(f"not in Paddle 2: {error}")
        raise


def trained_by(name: str, options: dict, cleared: bool, groups: bool = False):
    """Weights after each of 8 steps with the small half pruned, and of 8 with nothing pruned."""
    net = nn.Linear(2, 4, bias_attr=False)
    net.weight.set_value(WEIGHTS)
    parameters = [{"params": [net.weight], "learning_rate": 0.5}] if groups else net.parameters()
    opt = make_optimizer(name, parameters, **options)
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, optimizer=opt if cleared else None)
    seen, state = [], {}
    for step in range(16):
        if step == 8:
            pruner.ratio = 0
        difference = net(paddle.to_tensor([[1.0, 2], [0.5, 1]])) - 20  # every weight has to rise
        difference.square().mean().backward()
        opt.step()
        pruner.step()
        opt.clear_grad()
        seen.append(net.weight.numpy())
        if step == 7:
            accumulators = opt._accumulators.items()
            state = {key: value[net.weight.name].numpy() for key, value in accumulators}
            assert (pruner.masks["weight"].numpy() == LARGE).all()
    return seen, state


def test_every_optimizer_of_paddle_is_known():
    there = {*paddle.optimizer.__all__} - {"Optimizer", "lr"}
    listed = {*moments.MOMENTS, *moments.REFUSED}
    assert there <= listed if paddle.__version__.startswith("2.") else there == listed


@pytest.mark.parametrize("groups", [False, True], ids=["", "groups"])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_moments_of_pruned_weights_alone_are_cleared(name, options, groups):
    with_moments, before = trained_by(name, options, cleared=False, groups=groups)
    seen, state = trained_by(name, options, cleared=True, groups=groups)
    for weights, wanted in zip(seen[:8], with_moments):
        assert (weights[~LARGE] == 0).all()
        np.testing.assert_array_equal(weights[LARGE], wanted[LARGE])
    for key, value in state.items():
        if key.removeprefix("mine_") not in NO_MOMENTS:
            assert (value[~LARGE] == 0).all()
            np.testing.assert_array_equal(value[LARGE], before[key][LARGE])
        elif name != "Rprop":  # whose learning rates follow the gradients before
            np.testing.assert_array_equal(value, before[key])
    # What comes back rises at every step, and about as far as with moments.
    back = np.array([weights[~LARGE] for weights in seen[7:]])
    assert (np.diff(back, axis=0) > 0).all()
    assert (back[-1] > 0.1 * with_moments[-1][~LARGE]).all()


def test_rprop_keeps_the_learning_rate_of_a_pruned_weight():
    _, state = trained_by("Rprop", {}, cleared=True)
    assert (state["learning_rates"][~LARGE] == np.float32(1e-3)).all()
    assert (state["learning_rates"][LARGE] > 1e-3).all()


class Mine(paddle.optimizer.Adam):
    pass


class MyLamb(paddle.optimizer.Lamb):
    pass


class Momentum:  # of another library
    def state_dict(self):
        return {}


class SGD(paddle.optimizer.Optimizer):  # from the base class, and called as one of Paddle's
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (paddle.optimizer.Lamb, "of Lamb cannot be cleared: it scales the step of a weight by"),
        (MyLamb, "of MyLamb cannot be cleared: it scales the step of a weight by"),
        (paddle.optimizer.LBFGS, "of LBFGS cannot be cleared: it keeps no moment a weight"),
        (lambda parameters: Momentum(), "of Momentum cannot be cleared: it is not derived from"),
        (
            lambda parameters: SGD(1.0, parameters=parameters),
            "of SGD cannot be cleared: it is not derived from one of these; leave `optimizer` out",
        ),
        (lambda parameters: "Adam", "of str cannot be cleared"),
    ],
)
def test_optimizers_whose_moments_cannot_be_cleared(make, message):
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner(net, "ratio", optimizer=make(parameters=net.parameters()))


def test_an_optimizer_derived_from_one_of_paddles_is_taken_for_that():
    net = nn.Linear(2, 2)
    opt = Mine(parameters=net.parameters())
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, optimizer=opt)
    net(paddle.ones([1, 2])).sum().backward()
    opt.step()
    pruner.step()
    assert int((opt._accumulators["moment1"][net.weight.name] == 0).sum()) == 2


def test_a_copys_moments_are_its_own():
    net = nn.Linear(4, 4)
    other = copy.deepcopy(net)  # whose weight is called as net's, with more behind
    assert other.weight.name.startswith(f"{net.weight.name}_")
    opt = paddle.optimizer.Momentum(0.1, parameters=[*net.parameters(), *other.parameters()])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, optimizer=opt)
    (net(paddle.ones([2, 4])) + other(paddle.ones([2, 4]))).sum().backward()
    opt.step()
    pruner.step()
    velocity = opt._accumulators["velocity"]
    zeros = [int((velocity[p.name] == 0).sum()) for p in (net.weight, other.weight)]
    assert zeros == [8, 0]


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam"])
def test_float32_originals_of_16_bit_weights_are_pruned_with_them(name):
    net = nn.Layer()
    net.w0 = net.create_parameter([1, 4], dtype="bfloat16")
    paddle.assign(paddle.to_tensor([[1.0, 2, 3, 4]]).astype("bfloat16"), output=net.w0)
    opt = getattr(paddle.optimizer, name)(0.125, parameters=net.parameters())
    opt._multi_precision = True  # SGD of Paddle 2.6 has no argument for it
    (net.w0.astype("float32") * 1.0).sum().backward()
    # Paddle's CPU has no kernel for it but SGD's; the originals and moments are made before.
    with contextlib.nullcontext() if name == "SGD" else pytest.raises(RuntimeError):
        opt.step()
    (original,) = opt.state_dict()["master_weights"].values()
    values = [moment for m in moments.MOMENTS[name] for moment in opt._accumulators[m].values()]
    for value in values:
        paddle.assign(paddle.ones_like(value), output=value)
    before = original.numpy()
    UnstructuredPruner(net, "ratio", ratio=0.5, optimizer=opt).step()
    assert net.w0.astype("bool").tolist() == [[False, False, True, True]]
    assert original.numpy().tolist() == [[0, 0, *before[0, 2:]]]
    assert [value.tolist() for value in values] == [[[0, 0, 1, 1]]] * len(values)
    assert len(values) == len(moments.MOMENTS[name]) - (name == "Adam")  # amsgrad's


def test_momentum_of_a_parameter_whose_name_begins_like_another():
    layers = [nn.Linear(6, 6, weight_attr=paddle.ParamAttr(name=name)) for name in ("q", "q_b")]
    net = nn.Sequential(*layers)
    opt = paddle.optimizer.Momentum(0.1, parameters=net.parameters())
    pruner = UnstructuredPruner(net, "ratio", distribution={"0.weight": 0.5}, optimizer=opt)
    net(paddle.ones([2, 6])).square().sum().backward()
    opt.step()
    pruner.step()
    zeros = [int((opt.state_dict()[f"{n}_velocity_0"] == 0).sum()) for n in ("q", "q_b")]
    assert zeros == [18, 0]
