"""Local, block, distributed, gradual and custom pruning."""

from __future__ import annotations

import copy
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle
import pytest
from paddle import nn

import masking
from unstructured_pruner import GMPUnstructuredPruner, UnstructuredPruner

CONFIGS = {"stable_iterations": 1, "pruning_iterations": 4, "tunning_iterations": 2,
           "pruning_steps": 2, "initial_ratio": 0.25}  # fmt: skip


@pytest.fixture(params=["cpu", "device"])
def path(request, monkeypatch):
    if request.param == "device":
        monkeypatch.setattr(masking, "_on_cpu", lambda *tensors: False)


def net_of(*arrays) -> nn.Layer:
    net = nn.Layer()
    for i, values in enumerate(arrays):
        parameter = net.create_parameter(np.shape(values))
        parameter.set_value(np.asarray(values, "float32"))
        net.add_parameter(f"w{i}", parameter)
    return net


def masks(pruner) -> list:
    return [mask.numpy().astype(int).tolist() for mask in pruner.masks.values()]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("options", [{"local_sparsity": True}, {"distribution": "uniform"}])
def test_local_sparsity_prunes_every_parameter_at_the_ratio(options):
    pruner = UnstructuredPruner(net_of([[1, 2, 3, 4]], [[50, 70, 60]]), "ratio", **options)
    pruner.step()
    assert masks(pruner) == [[[0, 0, 1, 1]], [[0, 1, 0]]]  # round(0.55 * 4), round(0.55 * 3)
    assert {name: float(t) for name, t in pruner.thresholds.items()} == {"w0": 3, "w1": 70}


def test_conv1x1_only():
    net = nn.Sequential(nn.Conv2D(4, 4, 1), nn.Conv2D(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, prune_params_type="conv1x1_only")
    pruner.step()
    assert list(pruner.masks) == ["0.weight"]
    assert UnstructuredPruner.total_sparse_conv1x1(net) == 0.5


@pytest.mark.usefixtures("path")
def test_blocks_go_by_their_mean_magnitude_signs_aside():
    # means of the 2x1 blocks: 5, 0.01, 4, 3; upstream averages 5 and -5 to 0
    net = net_of([[5, 0.01, 4, -3], [-5, -0.01, -4, 3]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, sparse_block=[2, 1])
    pruner.step()
    assert masks(pruner) == [[[1, 0, 1, 0], [1, 0, 1, 0]]]


@pytest.mark.usefixtures("path")
def test_blocks_at_the_edge_are_smaller_and_ratios_count_weights():
    # 3x3 in blocks of 2x2: means 1 (4 weights), 2 (2), 3 (2), 4 (1)
    weights = [[1, 1, 2], [1, 1, 2], [3, 3, 4]]
    for pruned, wanted in ((4, 4), (5, 4), (6, 6), (7, 6), (8, 8), (9, 9)):
        pruner = UnstructuredPruner(net_of(weights), "ratio", ratio=pruned / 9, sparse_block=[2, 2])
        pruner.step()
        assert int(np.sum(np.array(masks(pruner)) == 0)) == wanted


@pytest.mark.usefixtures("path")
def test_blocks_of_a_convolution_see_the_weight_as_a_matrix():
    net = net_of(np.arange(2 * 2 * 3 * 3).reshape(2, 2, 3, 3))
    pruner = UnstructuredPruner(net, "threshold", threshold=10, sparse_block=[1, 6])
    pruner.step()
    flat = np.array(masks(pruner)).reshape(2, 18)  # means 2.5, 8.5, 14.5 | 20.5, ...
    assert flat.tolist() == [[0] * 12 + [1] * 6, [1] * 18]


@pytest.mark.usefixtures("path")
def test_erk_and_patterns():
    net = net_of(np.arange(1, 17).reshape(2, 8), np.arange(1, 17).reshape(4, 4))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, distribution="erk")
    pruner.step()
    zeros = [int((np.array(mask) == 0).sum()) for mask in masks(pruner)]
    assert zeros == [round(16 * (1 - 0.625 * 8 / 9)), round(16 * (1 - 0.5 * 8 / 9))]
    pruner = UnstructuredPruner(net, "ratio", distribution={"w1": 0.75})
    pruner.step()
    assert pruner.ratio == 0.375
    assert [int((np.array(mask) == 0).sum()) for mask in masks(pruner)] == [0, 12]


def test_gmp_masks_change_with_the_ratio_and_weights_stay_masked_between():
    net = net_of([[1.0, 2, 3, 4, 5, 6, 7, 8]])
    pruner = GMPUnstructuredPruner(net, ratio=0.75, configs=CONFIGS)
    zeros, reached = [], []
    for _ in range(7):
        net.w0.set_value(net.w0 + 0.5)
        pruner.step()
        zeros.append(int((net.w0 == 0).sum()))
        reached.append(pruner.target_reached())
    # 0.25, then 0.25 + 0.5 * (1 - 1/8) = 0.6875 of 8, then 0.75
    assert zeros == [0, 2, 2, 6, 6, 6, 6]
    assert reached == [False] * 5 + [True] * 2
    assert pruner.ratio == 0.75


def test_gmp_goes_on_at_its_iteration():
    for at, ratio in ((0, 0), (1, 0.25), (3, 0.6875), (5, 0.75), (50, 0.75)):
        configs = {**CONFIGS, "resume_iteration": at}
        configs["tuning_iterations"] = configs.pop("tunning_iterations")
        pruner = GMPUnstructuredPruner(net_of([range(1, 17)]), ratio=0.75, configs=configs)
        pruner.step()
        assert pruner.ratio == ratio
        assert pruner.prunable_sparsity() == ratio


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruning_steps": 0}, "pruning_steps must be a whole number >= 1, got 0"),
        ({"pruning_steps": 5}, "pruning_steps must be at most pruning_iterations=4, got 5"),
        ({"stable_iterations": -1}, "stable_iterations must be a whole number >= 0, got -1"),
        ({"initial_ratio": 0.8}, r"initial_ratio must be in \[0, ratio=0.75\], got 0.8"),
        ({"stabel": 1}, "wrong: stabel"),
    ],
)
def test_gmp_configs_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        GMPUnstructuredPruner(net_of([[1, 2]]), ratio=0.75, configs={**CONFIGS, **change})
    with pytest.raises(ValueError, match=r"wrong: .*pruning_steps"):
        GMPUnstructuredPruner(net_of([[1, 2]]))


def test_prune_period():
    net = net_of([[1.0, 2, 3, 4]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, prune_period=2)
    seen = []
    for values in ([1, 2, 3, 4], [9, 9, 3, 1], [9, 8, 3, 1]):
        net.w0.set_value(np.float32([values]))
        pruner.step()
        seen.append(net.w0.numpy()[0].tolist())
    assert seen == [[0, 0, 3, 4], [0, 0, 3, 1], [9, 8, 0, 0]]


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


class TaylorPruner(UnstructuredPruner):
    def scores(self, name, param):
        if param.grad is None or not param.grad.astype("bool").any():
            raise ValueError(f"{name} has no gradient; call step() before clear_grad()")
        return (param * param.grad).abs()


def test_taylor_saliency():
    net = net_of([[1, 2, 3, 4]])
    pruner = TaylorPruner(net, "ratio", ratio=0.5)
    with pytest.raises(ValueError, match="w0 has no gradient"):
        pruner.step()
    (net.w0 * paddle.to_tensor([[4.0, 3.0, 0.1, -1.0]])).sum().backward()
    pruner.step()  # |w * grad| = 4, 6, 0.3, 4: among equals the first goes
    assert masks(pruner) == [[[0, 1, 0, 1]]]
    net.clear_gradients()
    with pytest.raises(ValueError, match="w0 has no gradient"):
        pruner.step()


def test_random_scores_and_scores_of_a_wrong_shape():
    class RandomPruner(UnstructuredPruner):
        def scores(self, name, param):
            return paddle.rand(param.shape)

    net = nn.Linear(40, 40)
    paddle.seed(0)
    pruner = RandomPruner(net, "ratio", ratio=0.3)
    pruner.step()
    assert pruner.prunable_sparsity() == 0.3
    magnitude = np.abs(net.weight.numpy()[net.weight.numpy() != 0])
    assert magnitude.min() < 0.02  # a small one that stayed

    class WrongPruner(UnstructuredPruner):
        def scores(self, name, param):
            return param.abs().sum(axis=0)

    with pytest.raises(ValueError, match="the scores of weight are"):
        WrongPruner(net, "ratio").step()


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


def test_a_model_being_pruned_can_be_copied_saved_and_compiled(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                        nn.Linear(64, 2))  # fmt: skip
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    opt = paddle.optimizer.SGD(0.01, parameters=net.parameters())
    images = paddle.randn([2, 3, 6, 6])
    compiled = paddle.jit.to_static(net)
    for _ in range(2):
        compiled(images).square().mean().backward()
        opt.step()
        pruner.step()
        opt.clear_grad()
    assert pruner.prunable_sparsity() == pytest.approx(0.5, abs=0.01)
    net.eval()
    wanted = net(images).numpy()
    assert np.array_equal(copy.deepcopy(net)(images).numpy(), wanted)
    paddle.jit.save(net, str(tmp_path / "net"),
                    input_spec=[paddle.static.InputSpec([None, 3, 6, 6], "float32")])  # fmt: skip
    loaded = paddle.jit.load(str(tmp_path / "net"))
    np.testing.assert_allclose(loaded(images).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_gmp_state_goes_on_towards_another_target():
    net = net_of([range(1, 17)])
    done = GMPUnstructuredPruner(net, ratio=0.5, configs=CONFIGS)
    for _ in range(6):
        done.step()
    assert done.prunable_sparsity() == 0.5
    pruner = GMPUnstructuredPruner(net, ratio=0.75, configs=CONFIGS)
    pruner.set_state_dict(done.state_dict())
    assert not pruner.target_reached()
    pruner.step()
    assert pruner.prunable_sparsity() == 0.75


def test_gmp_with_patterns_and_with_a_period():
    net = net_of([range(1, 17)], [range(1, 17)])
    pruner = GMPUnstructuredPruner(
        net, configs={**CONFIGS, "initial_ratio": 0.125}, distribution={"w0": 0.25, "w1": 0.75}
    )
    assert pruner.target_ratio == 0.5
    zeros = []
    for _ in range(6):
        pruner.step()
        zeros.append([int((np.array(mask) == 0).sum()) for mask in masks(pruner)])
    # ratios 0, 0.125, 0.125, 0.453125, ..., 0.5, split 1 to 3: of 16, 1/16 and 3/16 at 0.125
    assert [zeros[0], zeros[1], zeros[5]] == [[0, 0], [1, 3], [4, 12]]
    pruner = GMPUnstructuredPruner(net_of([[1.0, 2, 3, 4]]), ratio=0.5, prune_period=1,
                                   configs={**CONFIGS, "resume_iteration": 9})  # fmt: skip
    pruner.step()
    pruner.model.w0.set_value(np.float32([[9, 8, 2, 1]]))
    pruner.step()
    assert masks(pruner) == [[[1, 1, 0, 0]]]


def test_thresholds_of_an_earlier_step_decide_nothing():
    net = net_of([[1, 2, 3, 4]], [[5, 6, 7, 8]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, local_sparsity=True)
    pruner.step()
    other = UnstructuredPruner(net, "ratio", ratio=0.5)
    other.set_state_dict(pruner.state_dict())
    assert other.thresholds == pruner.thresholds != {}
    other.ratio = 0.75
    other.step()
    assert masks(other) == [[[0, 0, 0, 0]], [[0, 0, 1, 1]]]


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


def test_a_threshold_of_ones_own_cannot_be_local():
    class Own(UnstructuredPruner):
        def update_threshold(self):
            self.threshold = 0.5

    for options in ({"local_sparsity": True}, {"distribution": "erk"}):
        with pytest.raises(ValueError, match="sets one threshold for all"):
            Own(nn.Linear(2, 2), "ratio", **options)


def test_scores_may_be_whole_numbers():
    class Ranks(UnstructuredPruner):
        def scores(self, name, param):
            return paddle.arange(4).reshape([1, 4])

    pruner = Ranks(net_of([[9, 8, 7, 6]]), "ratio", ratio=0.5)
    pruner.step()
    assert masks(pruner) == [[[0, 0, 1, 1]]]
