"""Local, block, distributed, gradual and custom pruning."""

from __future__ import annotations

import contextlib
import copy
import json
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle
import pytest
from paddle import nn

from unstructured_pruner import GMPUnstructuredPruner, UnstructuredPruner
from unstructured_pruning import masking, moments

CONFIGS = {"stable_iterations": 1, "pruning_iterations": 4, "tunning_iterations": 2,
           "pruning_steps": 2, "initial_ratio": 0.25}  # fmt: skip


@pytest.fixture(params=["cpu", "device"])
def path(request, monkeypatch):
    if request.param == "device":
        monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)


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
        assert not pruner.target_reached()  # no mask has been made
        pruner.step()
        assert pruner.ratio == ratio
        assert pruner.prunable_sparsity() == ratio


def test_gmps_ratio_before_the_first_step_is_that_of_the_step_before():
    done = GMPUnstructuredPruner(net_of([range(1, 17)]), ratio=0.75, configs=CONFIGS)
    for taken in range(8):
        configs = {**CONFIGS, "resume_iteration": taken}
        pruner = GMPUnstructuredPruner(net_of([range(1, 17)]), ratio=0.75, configs=configs)
        assert pruner.ratio == done.ratio
        other = GMPUnstructuredPruner(net_of([range(1, 17)]), ratio=0.75, configs=CONFIGS)
        other.set_state_dict(pruner.state_dict())  # whose masks are all True still
        done.step()
        other.step()
        assert masks(other) == masks(done)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruning_steps": 0}, "pruning_steps must be a whole number >= 1, got 0"),
        ({"pruning_steps": 5}, "pruning_steps must be at most pruning_iterations=4, got 5"),
        ({"stable_iterations": -1}, "stable_iterations must be a whole number >= 0, got -1"),
        ({"initial_ratio": 0.8}, r"initial_ratio must be in \[0, ratio=0.75\], got 0.8"),
        ({"pruning_steps": np.float32(2)}, "pruning_steps must be a whole number >= 1"),
        ({"pruning_steps": np.int64(0)}, "pruning_steps must be a whole number >= 1"),
    ],
)
def test_gmp_configs_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        GMPUnstructuredPruner(net_of([[1, 2]]), ratio=0.75, configs={**CONFIGS, **change})
    with pytest.raises(ValueError, match=r"must have the keys .*missing: stable_iterations"):
        GMPUnstructuredPruner(net_of([[1, 2]]))
    configs = {name: value for name, value in CONFIGS.items() if name != "stable_iterations"}
    with pytest.raises(ValueError, match="missing: stable_iterations; of no use: stabel"):
        GMPUnstructuredPruner(net_of([[1, 2]]), configs={**configs, "stabel_iterations": 1})


def test_further_keys_of_configs_are_named_in_a_warning():  # as PaddleDetection's are
    configs = {**CONFIGS, "pruning_strategy": "gmp", "prune_params_type": None}
    with pytest.warns(UserWarning, match="no use here: pruning_strategy, prune_params_type$"):
        pruner = GMPUnstructuredPruner(net_of([[1, 2]]), ratio=0.75, configs=configs)
    wanted = GMPUnstructuredPruner(net_of([[1, 2]]), ratio=0.75, configs=CONFIGS)
    assert pruner.configs == wanted.configs


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
    known = {*moments.MOMENTS, *moments.REFUSED}
    assert there <= known if paddle.__version__.startswith("2.") else there == known


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
    same = GMPUnstructuredPruner(net, ratio=0.5, configs=CONFIGS)
    same.set_state_dict(done.state_dict())
    assert same.target_reached()
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
