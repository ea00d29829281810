"""Does the pruner compute what PaddleSlim's computes? And where does it differ on purpose?

    bash run.sh parity          # or: python -m pytest tests/parity

Needs Paddle 2.6.2 and PaddleSlim 2.6.0, its last release. First part: both pruners train copies of
one small network on the same data, and after every step all prunable weights and masks are the
same, bit for bit (+0.0 and -0.0 are both 0). Second part: a test for each of PaddleSlim's
defects, with its result and ours.

Two habits of PaddleSlim matter throughout. It prunes one weight fewer than the ratio asks for, so
where ratios are compared, ours is given its count. And it applies masks in the forward pass (or in
update_params()), not in step(), so its weights are compared with its masks applied.
"""

from __future__ import annotations

import contextlib
import io
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle
import pytest
from paddle import nn

with contextlib.redirect_stdout(io.StringIO()):
    from paddleslim.dygraph.prune import unstructured_pruner as paddleslim

import unstructured_pruner as ours
from unstructured_pruning.schedules import gmp_ratio

STEPS = 40
LEARNING_RATES = ([15, 30], [0.5, 0.2, 0.05])  # boundaries in steps, values


# ------------------------------------------------------------------------------------------------
# Two copies of one network
# ------------------------------------------------------------------------------------------------


def network() -> nn.Layer:
    """MobileNet in small: a 3x3, a depthwise and a 1x1 convolution, norms, a linear layer."""
    return nn.Sequential(
        *(nn.Conv2D(3, 16, 3, padding=1, bias_attr=False), nn.BatchNorm2D(16), nn.ReLU()),
        *(nn.Conv2D(16, 16, 3, padding=1, groups=16), nn.BatchNorm2D(16), nn.ReLU()),
        *(nn.Conv2D(16, 32, 1), nn.BatchNorm(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2D(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def twins(make=network) -> tuple[nn.Layer, nn.Layer]:
    paddle.seed(0)
    theirs, mine = make(), make()
    mine.set_state_dict(theirs.state_dict())
    return theirs, mine


def slim(pruner, model, *args, **kwargs):
    """A pruner of PaddleSlim's, without the line that it prints for every parameter."""
    with contextlib.redirect_stdout(io.StringIO()):
        return pruner(model, *args, **kwargs)


def theirs_step(pruner) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # "block size might be too large"
        pruner.step()


def prunable(model, prune_params_type=None) -> dict[str, paddle.Tensor]:
    conv1x1 = prune_params_type == "conv1x1_only"
    return ours.prunable_parameters(model, ours.skip_all_but_conv1x1(model) if conv1x1 else None)


def one_fewer(ratio: float, count: int) -> float:
    """The ratio that has us prune as many of `count` weights as PaddleSlim does at `ratio`."""
    return max(0, round(ratio * count) - 1) / count


def masks_of(pruner, names) -> dict[str, np.ndarray]:
    """Bool masks by structured name; PaddleSlim's are float or bool and under Paddle's names."""
    if isinstance(pruner, ours.UnstructuredPruner):
        return {name: pruner.masks[name].numpy() for name in names}
    parameters = dict(pruner.model.named_parameters())
    return {name: pruner.masks[parameters[name].name].numpy().astype(bool) for name in names}


def kept(mask: np.ndarray) -> np.ndarray:
    """What a masked weight is multiplied with; the custom strategy below has its own."""
    return mask.astype("float32")


def train(theirs, mine, steps=STEPS, factor=kept, call_update_params=False) -> dict[str, int]:
    """Trains both, comparing after every step; how many masks went from 1 to 0 and back.

    theirs, mine: pruners, which hold their models.
    """
    rng = np.random.default_rng(0)
    pruners, optimizers, schedulers = (theirs, mine), [], []
    for pruner in pruners:
        scheduler = paddle.optimizer.lr.PiecewiseDecay(*LEARNING_RATES)
        optimizers.append(
            paddle.optimizer.Momentum(
                learning_rate=scheduler,
                momentum=0.9,
                parameters=pruner.model.parameters(),
                weight_decay=paddle.regularizer.L2Decay(3e-4),
            )
        )
        schedulers.append(scheduler)
    last, moves = None, {"pruned": 0, "came back": 0}
    for step in range(steps):
        images = paddle.to_tensor(rng.standard_normal((8, 3, 6, 6), "f4"))
        labels = paddle.to_tensor(rng.integers(0, 10, 8))
        losses = []
        for pruner, opt, scheduler in zip(pruners, optimizers, schedulers):
            loss = nn.functional.cross_entropy(pruner.model(images), labels)
            loss.backward()
            opt.step()
            scheduler.step()
            opt.clear_grad()
            theirs_step(pruner) if pruner is theirs else pruner.step()
            if call_update_params:
                pruner.update_params()
            losses.append(float(loss))
        assert losses[0] == losses[1], f"step {step}"
        masks = assert_same(theirs, mine, factor, f"step {step}")
        for name, mask in masks.items() if last else ():
            moves["pruned"] += np.count_nonzero(last[name] & ~mask)
            moves["came back"] += np.count_nonzero(mask & ~last[name])
        last = masks
    pruner_buffers = {k for k in theirs.model.state_dict() if k.endswith("_mask")}
    state = mine.model.state_dict()
    assert set(state) == set(theirs.model.state_dict()) - pruner_buffers
    for name, tensor in theirs.model.state_dict().items():  # also biases, norms, running means
        if name not in {*pruner_buffers, *mine.masks}:
            np.testing.assert_array_equal(tensor.numpy(), state[name].numpy(), name)
    return moves


def assert_same(theirs, mine, factor=kept, where="") -> dict[str, np.ndarray]:
    """All prunable weights (with masks applied) and masks are equal; returns the masks."""
    names = list(mine.masks)
    their_masks, my_masks = masks_of(theirs, names), masks_of(mine, names)
    their_weights = dict(theirs.model.named_parameters())
    my_weights = dict(mine.model.named_parameters())
    for name in names:
        np.testing.assert_array_equal(their_masks[name], my_masks[name], f"mask {name} {where}")
        weight = their_weights[name].numpy() * factor(their_masks[name])
        np.testing.assert_array_equal(weight, my_weights[name].numpy(), f"{name} {where}")
    return my_masks


# ------------------------------------------------------------------------------------------------
# The same, bit for bit
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call_update_params", [False, True])
@pytest.mark.parametrize("prune_params_type", [None, "conv1x1_only"])
def test_threshold_mode_trains_the_same_network(prune_params_type, call_update_params):
    a, b = twins()
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 0.03, 0.55, prune_params_type)
    mine = ours.UnstructuredPruner(b, "threshold", 0.03, 0.55, prune_params_type)
    assert len(mine.masks) == (1 if prune_params_type else 4)
    moves = train(theirs, mine, call_update_params=call_update_params)
    assert moves["pruned"] > 0
    assert moves["came back"] > 0  # masks are dynamic


@pytest.mark.parametrize("prune_params_type", [None, "conv1x1_only"])
@pytest.mark.parametrize("ratio", [0.1, 0.55, 0.8])
def test_ratio_mode_trains_the_same_network_given_the_same_count(ratio, prune_params_type):
    a, b = twins()
    count = sum(p.size for p in prunable(b, prune_params_type).values())
    theirs = slim(paddleslim.UnstructuredPruner, a, "ratio", 0.01, ratio, prune_params_type)
    mine = ours.UnstructuredPruner(b, "ratio", 0.01, one_fewer(ratio, count), prune_params_type)
    moves = train(theirs, mine)
    assert theirs.threshold == mine.threshold > 0
    assert moves["pruned"] > 0
    assert moves["came back"] > 0


@pytest.mark.parametrize("ratio", [0.1, 0.55, 0.9])
def test_local_sparsity_trains_the_same_network_given_the_same_counts(ratio):
    a, b = twins()
    theirs = slim(paddleslim.UnstructuredPruner, a, "ratio", ratio=ratio, local_sparsity=True)
    counts = {name: one_fewer(ratio, p.size) for name, p in prunable(b).items()}
    mine = ours.UnstructuredPruner(b, "ratio", distribution=counts)
    train(theirs, mine)
    parameters = dict(a.named_parameters())
    assert mine.thresholds == {n: theirs.thresholds[parameters[n].name] for n in counts}


def test_local_sparsity_masks_differ_by_one_weight_per_parameter():
    a, b = twins()
    theirs = slim(paddleslim.UnstructuredPruner, a, "ratio", ratio=0.5, local_sparsity=True)
    mine = ours.UnstructuredPruner(b, "ratio", ratio=0.5, local_sparsity=True)
    theirs_step(theirs)
    mine.step()
    my_masks, their_masks = masks_of(mine, mine.masks), masks_of(theirs, mine.masks)
    assert all(np.sum(their_masks[name] != my_masks[name]) == 1 for name in mine.masks)


@pytest.mark.parametrize("mode", ["threshold", "ratio"])
def test_skip_params_func_with_paddles_names_trains_the_same_network(mode):
    """Paddle's names of layers and parameters mean the same to both; biases are pruned here."""

    def skip(model):
        norms = {la.full_name() for la in model.sublayers() if isinstance(la, ours.NORMS)}
        return {*norms, model[0].weight.name, model[11].full_name()}

    a, b = twins()
    theirs = slim(paddleslim.UnstructuredPruner, a, mode, 0.1, 0.55, skip_params_func=skip)
    names = ours.prunable_parameters(b, skip(b))
    assert list(names) == ["3.weight", "3.bias", "6.weight", "6.bias"]
    ratio = one_fewer(0.55, sum(p.size for p in names.values()))
    if mode == "ratio":  # else the zeros that biases start from are ties
        for model in (a, b):
            for bias in (model[3].bias, model[6].bias):
                bias.set_value(np.linspace(-1, 1, bias.size, dtype="f4"))
    mine = ours.UnstructuredPruner(b, mode, 0.1, ratio, skip_params_func=skip)
    train(theirs, mine)


@pytest.mark.parametrize("ratio", [0.001, 0.55, 0.999])
def test_masks_of_matrices_larger_than_a_piece_are_the_same(ratio):
    """The pruner goes through a weight 65,536 at a time and finds its threshold from a sample."""
    rng = np.random.default_rng(0)
    a, b = twins(lambda: nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 400)))
    theirs = slim(paddleslim.UnstructuredPruner, a, "ratio", ratio=ratio)
    mine = ours.UnstructuredPruner(b, "ratio", ratio=one_fewer(ratio, 350_000))
    for spread in (1, 1e-6, 1e6):
        for i in (0, 1):
            # All magnitudes differ, else the ties that PaddleSlim leaves would.
            values = rng.permutation(a[i].weight.size) * 2 + i + 1
            values = (values * rng.choice([-1, 1], values.size) * spread).astype("f4")
            for model in (a, b):
                model[i].weight.set_value(values.reshape(model[i].weight.shape))
        theirs_step(theirs)
        mine.step()
        assert_same(theirs, mine)
        assert theirs.threshold == mine.threshold


def test_a_weight_at_the_threshold_is_kept_by_both():
    """Also 0.7, which is smaller in float32 than in Python."""
    values = np.full((10, 10), 0.7, "f4") * np.tile(np.array([1, -1], "f4"), (10, 5))
    values[0] = np.nextafter(np.float32(0.7), np.float32(0))
    a, b = twins(lambda: nn.Sequential(nn.Linear(10, 10)))
    for model in (a, b):
        model[0].weight.set_value(values)
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 0.7)
    mine = ours.UnstructuredPruner(b, "threshold", 0.7)
    theirs_step(theirs)
    mine.step()
    (mask,) = assert_same(theirs, mine).values()
    assert mask.sum(1).tolist() == [0] + [10] * 9


class HalvesMasked:
    """A strategy that halves masked weights at every step in place of setting them to 0."""

    def mask_parameters(self, param, mask):
        halved = param.detach() * (mask.astype(param.dtype) * 0.5 + 0.5)
        paddle.assign(halved, output=param)


class MeanMagnitude:
    """A strategy that prunes what is smaller than the mean magnitude of all matrices."""

    def update_threshold(self):
        matrices = [p.numpy().ravel() for p in self.model.parameters() if p.ndim > 1]
        self.threshold = float(np.abs(np.concatenate(matrices)).mean())


def with_strategy(strategy):
    bases = (paddleslim.UnstructuredPruner, ours.UnstructuredPruner)
    return [type(strategy.__name__, (strategy, base), {}) for base in bases]


@pytest.mark.parametrize("mode", ["threshold", "ratio"])
def test_strategy_that_overrides_mask_parameters_trains_the_same_network(mode):
    Theirs, Mine = with_strategy(HalvesMasked)
    a, b = twins()
    ratio = one_fewer(0.55, sum(p.size for p in prunable(b).values()))
    theirs, mine = slim(Theirs, a, mode, 0.1, 0.55), Mine(b, mode, 0.1, ratio)
    train(theirs, mine, factor=lambda mask: np.where(mask, np.float32(1), np.float32(0.5)))
    weights = b[11].weight.numpy()
    assert np.count_nonzero(weights[~masks_of(mine, mine.masks)["11.weight"]]) > 0


def test_strategy_that_overrides_update_threshold_trains_the_same_network():
    Theirs, Mine = with_strategy(MeanMagnitude)
    a, b = twins()
    theirs, mine = slim(Theirs, a, "ratio"), Mine(b, "ratio")
    train(theirs, mine)
    assert theirs.threshold == mine.threshold > 0


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_summaries_agree(ratio):
    a, b = twins()
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 0.1)
    mine = ours.UnstructuredPruner(b, "threshold", 0.1)
    train(theirs, mine, steps=3, call_update_params=True)
    assert mine.total_sparse(b) == pytest.approx(theirs.total_sparse(a), abs=1e-12)
    assert mine.total_sparse_conv1x1(b) == pytest.approx(theirs.total_sparse_conv1x1(a), abs=1e-12)
    assert 0.05 < mine.total_sparse_conv1x1(b) < 0.95
    # summarize_weights: theirs counts biases too, and is one weight short. Without biases:
    a, b = twins(lambda: nn.Sequential(nn.Linear(10, 10, bias_attr=False)))
    ordered = np.sort(np.abs(a[0].weight.numpy()), axis=None)
    k = round(ratio * 100)
    assert theirs.summarize_weights(a, ratio) == ordered[k - 1]
    assert mine.summarize_weights(b, ratio) == ordered[k]


# Blocks. PaddleSlim averages signed values; where a block has one sign that is the mean magnitude.
# Training does not keep it so, hence new weights at each step. Only matrices and 1x1 convolutions:
# it fails on biases (they have no columns) and cuts other kernels differently, see below.


class Matrices(nn.Layer):
    """A linear layer [8, 12] and a 1x1 convolution [8, 4, 1, 1], blocks of 2 x 2 of one sign."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(8, 12), nn.Conv2D(4, 8, 1)

    def redraw(self, rng) -> None:
        for weight in (self.linear.weight, self.conv.weight):
            rows, columns = weight.shape[0], weight.shape[1]
            # Whole numbers: every mean is exact, in whatever order it is added up.
            signs = np.kron(rng.choice([-1, 1], (rows // 2, columns // 2)), np.ones((2, 2)))
            values = signs * rng.integers(1, 100_000, (rows, columns))
            weight.set_value(values.reshape(weight.shape).astype("f4"))


def matrices_twice():
    """Pairs of equal models with new weights each time, for ever."""
    rng = np.random.default_rng(0)
    a, b = Matrices(), Matrices()
    while True:
        a.redraw(rng)
        b.set_state_dict({k: v for k, v in a.state_dict().items() if not k.endswith("_mask")})
        yield a, b


# PaddleSlim takes the mean of the empty slices behind a matrix's edge, which warns.
blocks = pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
BLOCK_SIZES = [[1, 2], [2, 1], [2, 2]]


@blocks
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_blocks_in_threshold_mode_give_the_same_masks(block):
    pairs = matrices_twice()
    a, b = next(pairs)
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 40_000.0, sparse_block=block)
    mine = ours.UnstructuredPruner(b, "threshold", 40_000.0, sparse_block=block)
    for _ in range(30):
        theirs_step(theirs)
        mine.step()
        masks = assert_same(theirs, mine)
        assert 0 < sum(map(np.count_nonzero, masks.values())) < 128
        next(pairs)


@blocks
@pytest.mark.parametrize("local_sparsity", [False, True])
@pytest.mark.parametrize("ratio", [0.25, 0.55, 0.9])
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_blocks_in_ratio_mode_give_the_same_masks_given_the_same_count(
    block, ratio, local_sparsity
):
    pairs = matrices_twice()
    a, b = next(pairs)
    theirs = slim(
        paddleslim.UnstructuredPruner,
        *(a, "ratio"),
        ratio=ratio,
        local_sparsity=local_sparsity,
        sparse_block=block,
    )
    sizes = {name: p.size for name, p in prunable(b).items()}
    fewer = {name: one_fewer(ratio, size) for name, size in sizes.items()}
    mine = ours.UnstructuredPruner(
        *(b, "ratio"),
        ratio=one_fewer(ratio, sum(sizes.values())),
        sparse_block=block,
        distribution=fewer if local_sparsity else "global",
    )
    for _ in range(30):
        theirs_step(theirs)
        mine.step()
        assert_same(theirs, mine)
        next(pairs)


@blocks
@pytest.mark.parametrize("block", [[2, 5], [3, 2], [3, 5]])
def test_blocks_cut_off_at_the_edge_give_the_same_masks(block):
    """[8, 12] is no multiple of these. The cut blocks are ranked by the mean of what they hold."""
    rng = np.random.default_rng(0)
    a, b = twins(lambda: nn.Sequential(nn.Linear(12, 8)))
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 50.0, sparse_block=block)
    mine = ours.UnstructuredPruner(b, "threshold", 50.0, sparse_block=block)
    for _ in range(10):
        # The magnitudes fall off by octaves: no mean is so near 50 that rounding could decide.
        values = (2.0 ** rng.integers(0, 10, (12, 8))).astype("f4")
        for model in (a, b):
            model[0].weight.set_value(values)
        theirs_step(theirs)
        mine.step()
        assert_same(theirs, mine)


@blocks
@pytest.mark.parametrize("block", [[2, 5], [3, 2], [3, 5]])
def test_blocks_cut_off_at_the_edge_give_the_same_masks_at_every_count(block):
    rng = np.random.default_rng(0)
    a, b = twins(lambda: nn.Sequential(nn.Linear(12, 8)))
    shape = -(-12 // block[0]), -(-8 // block[1])
    # A block is one number throughout, and no two are the same.
    means = rng.permutation(np.prod(shape)).reshape(shape) + 1
    signed = np.kron(means * rng.choice([-1, 1], shape), np.ones(block))[:12, :8]
    for count in range(1, 97):
        for model in (a, b):
            model[0].weight.set_value(signed.astype("f4"))
        ratio = count / 96
        theirs = slim(paddleslim.UnstructuredPruner, a, "ratio", ratio=ratio, sparse_block=block)
        mine = ours.UnstructuredPruner(b, "ratio", ratio=one_fewer(ratio, 96), sparse_block=block)
        theirs_step(theirs)
        mine.step()
        assert_same(theirs, mine, where=f"{count} of 96")


# Gradual magnitude pruning.


class OneFewer:
    """PaddleSlim's choice of threshold, as a strategy on our pruner."""

    def update_threshold(self):
        weights = [p.numpy().ravel() for p in prunable(self.model).values()]
        ordered = np.sort(np.abs(np.concatenate(weights)))
        self.threshold = float(ordered[max(0, round(self.ratio * ordered.size) - 1)])


def gmp_configs(stable, pruning, tunning, steps, resume=0) -> dict:
    return {
        "stable_iterations": stable,
        "pruning_iterations": pruning,
        "tunning_iterations": tunning,
        "resume_iteration": resume,
        "pruning_steps": steps,
        "initial_ratio": 0.15,
    }


def gmp_twins(configs, ratio=0.75):
    a, b = twins(lambda: nn.Sequential(nn.Linear(10, 10, bias_attr=False)))
    theirs = slim(paddleslim.GMPUnstructuredPruner, a, ratio, configs=configs)
    return theirs, ours.GMPUnstructuredPruner(b, ratio, configs=configs)


# stable, pruning and tunning iterations, pruning steps
WHOLE_PERIODS = [(0, 44, 22, 4), (22, 33, 11, 3), (60, 240, 60, 20), (11, 11, 11, 1)]


@pytest.mark.parametrize("resume", [0, 1, 25, 44, 100])
@pytest.mark.parametrize("phases", WHOLE_PERIODS)
def test_gmp_ratio_is_the_same_at_every_iteration_of_whole_periods(phases, resume):
    theirs, mine = gmp_twins(gmp_configs(*phases, resume))
    for i in range(resume, max(resume, sum(phases[:3])) + 15):
        theirs_step(theirs)
        mine.step()
        expected = gmp_ratio(i, phases[0], phases[1], phases[3], 0.15, 0.75)
        assert theirs.ratio == mine.ratio == expected, f"iteration {i}"
    assert mine.ratio == 0.75


@pytest.mark.parametrize("phases", WHOLE_PERIODS)
def test_gmp_masks_differ_by_just_the_one_weight_that_paddleslim_leaves(phases):
    theirs, mine = gmp_twins(gmp_configs(*phases))
    magnitudes = np.linspace(0.01, 1, 100, dtype="f4").reshape(10, 10)
    rng = np.random.default_rng(0)
    for i in range(sum(phases[:3]) + 15):
        values = rng.permutation(magnitudes.ravel()).reshape(10, 10)
        for pruner in (theirs, mine):
            pruner.model[0].weight.set_value(values)
        before = mine.ratio
        theirs_step(theirs)
        mine.step()
        (their_mask,), (my_mask,) = (masks_of(p, mine.masks).values() for p in (theirs, mine))
        (extra,) = (values[their_mask & ~my_mask],)
        assert not np.any(my_mask & ~their_mask)
        assert np.sum(~my_mask) == round(100 * mine.ratio)
        assert extra.size == (mine.ratio > 0), f"iteration {i}"
        if mine.ratio != before:
            assert extra == values[their_mask].min(), f"iteration {i}"


def test_gmp_trains_the_same_network_given_the_same_counts():
    class Mine(OneFewer, ours.GMPUnstructuredPruner):
        pass

    a, b = twins()
    configs = gmp_configs(11, 33, 11, 3)
    theirs = slim(paddleslim.GMPUnstructuredPruner, a, 0.75, configs=configs)
    mine = Mine(b, 0.75, configs=configs)
    moves = train(theirs, mine, steps=60)
    assert moves["pruned"] > 0
    assert theirs.ratio == mine.ratio == 0.75


# ------------------------------------------------------------------------------------------------
# Different on purpose: PaddleSlim's result, then ours
# ------------------------------------------------------------------------------------------------


def hundred(values=None) -> nn.Layer:
    """100 weights and no bias: by default 0.01, 0.02, ... 1.00."""
    model = nn.Sequential(nn.Linear(10, 10, bias_attr=False))
    values = np.arange(1, 101) / 100 if values is None else values
    model[0].weight.set_value(np.reshape(values, (10, 10)).astype("f4"))
    return model


def pruned_by_each(make, **kwargs) -> list[int]:
    """How many weights PaddleSlim, and we, mask in one step of ratio mode."""
    a, b = make(), make()
    theirs = slim(paddleslim.UnstructuredPruner, a, "ratio", **kwargs)
    mine = ours.UnstructuredPruner(b, "ratio", **kwargs)
    theirs_step(theirs)
    mine.step()
    return [sum(np.sum(~m) for m in masks_of(p, mine.masks).values()) for p in (theirs, mine)]


@pytest.mark.parametrize(("ratio", "theirs", "mine"), [(0.5, 49, 50), (0.01, 0, 1), (1.0, 99, 100)])
def test_a_ratio_prunes_one_too_few_there_and_exactly_that_many_here(ratio, theirs, mine):
    assert pruned_by_each(hundred, ratio=ratio) == [theirs, mine]


def test_equal_weights_are_never_pruned_there_and_half_of_them_here():
    assert pruned_by_each(lambda: hundred(np.full(100, 0.3)), ratio=0.5) == [0, 50]


def test_a_model_with_more_zeros_than_the_ratio_gets_masks_of_ones_there_and_the_ratio_here():
    weights = np.arange(1, 101) / 100
    weights[:60] = 0
    assert pruned_by_each(lambda: hundred(weights), ratio=0.5) == [0, 50]


class Shared(nn.Layer):
    """100 small weights that two layers share, 100 large ones in a third."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(10, 10, bias_attr=False) for _ in range(3))
        self.b.weight = self.a.weight
        small = np.arange(1, 101).reshape(10, 10).astype("f4")
        self.a.weight.set_value(small)
        self.c.weight.set_value(small + 100)


def test_a_shared_weight_counts_twice_there_and_once_here():
    # Their 300 magnitudes start 1, 1, 2, 2, ...; the 150th is 75, so 74 of 200 weights go.
    assert pruned_by_each(Shared, ratio=0.5) == [74, 100]


def test_a_bare_layer_fails_there_and_is_pruned_here():
    with pytest.raises(ValueError, match="need at least one array"):
        theirs_step(slim(paddleslim.UnstructuredPruner, nn.Linear(10, 10), "ratio", ratio=0.5))
    mine = ours.UnstructuredPruner(nn.Linear(10, 10), "ratio", ratio=0.5)
    mine.step()
    assert mine.prunable_sparsity() == 0.5


def test_a_parameter_of_the_model_itself_is_left_out_there_and_pruned_here():
    class WithOwnWeight(nn.Layer):
        def __init__(self):
            super().__init__()
            self.inner = hundred()
            self.own = self.create_parameter([10, 10])
            self.own.set_value(np.full((10, 10), 0.001, "f4"))

    theirs = slim(paddleslim.UnstructuredPruner, WithOwnWeight(), "threshold", 0.01)
    theirs_step(theirs)
    theirs.update_params()
    mine = ours.UnstructuredPruner(WithOwnWeight(), "threshold", 0.01)
    mine.step()
    assert np.count_nonzero(theirs.model.own.numpy()) == 100
    assert np.count_nonzero(mine.model.own.numpy()) == 0


def test_set_static_masks_freezes_zero_biases_there_and_only_weights_here():
    def train_sparse(pruner):
        """Weight and bias after 3 steps from a sparse weight and a bias of 0."""
        layer = pruner.model[0]
        layer.weight.set_value(np.eye(10, dtype="f4"))
        pruner.set_static_masks()
        opt = paddle.optimizer.SGD(0.1, parameters=pruner.model.parameters())
        for _ in range(3):
            pruner.model(paddle.ones([2, 10])).sum().backward()
            opt.step()
            opt.clear_grad()
            pruner.update_params()
        return layer.weight.numpy(), layer.bias.numpy()

    a, b = twins(lambda: nn.Sequential(nn.Linear(10, 10)))
    their_weight, their_bias = train_sparse(slim(paddleslim.UnstructuredPruner, a, "threshold"))
    my_weight, my_bias = train_sparse(ours.UnstructuredPruner(b, "threshold"))
    np.testing.assert_array_equal(their_weight, my_weight)
    np.testing.assert_array_equal(my_weight != 0, np.eye(10))
    np.testing.assert_array_equal(their_bias, np.zeros(10))
    np.testing.assert_allclose(my_bias, np.full(10, -0.6), rtol=1e-5)  # 3 * 0.1 * 2 pictures


def test_masks_land_in_the_state_dict_there_and_not_here():
    a, b = twins()
    plain = list(b.state_dict())
    slim(paddleslim.UnstructuredPruner, a, "threshold")
    ours.UnstructuredPruner(b, "threshold").step()
    added = set(a.state_dict()) - set(plain)
    assert len(added) == 19  # one a parameter: biases and running means too
    assert all(name.endswith("_mask") for name in added)
    assert list(b.state_dict()) == plain


@blocks
def test_a_block_of_large_weights_of_both_signs_is_pruned_there_and_kept_here():
    def make():
        model = nn.Sequential(nn.Linear(1, 4, bias_attr=False))
        model[0].weight.set_value(np.array([[5, -5, 0.01, 0.01]], "f4"))
        return model

    # 0.75 for theirs: one fewer than 0.5 of 4 weights holds no block of 2.
    theirs = slim(paddleslim.UnstructuredPruner, make(), "ratio", ratio=0.75, sparse_block=[1, 2])
    mine = ours.UnstructuredPruner(make(), "ratio", ratio=0.5, sparse_block=[1, 2])
    theirs_step(theirs)
    mine.step()
    (their_mask,), (my_mask,) = (masks_of(p, mine.masks).values() for p in (theirs, mine))
    assert their_mask.tolist() == [[False, False, True, True]]
    assert my_mask.tolist() == [[True, True, False, False]]


@blocks
def test_blocks_of_a_3x3_convolution_span_whole_kernels_there_and_single_weights_here():
    """A weight [out, in, 3, 3] is cut along out and in there; here it is a matrix [out, in * 9].

    So PaddleSlim's [m, n] is our [m, 9 n] (blocks of one sign, as above).
    """
    rng = np.random.default_rng(0)
    signs = np.kron(rng.choice([-1, 1], (4, 2, 1, 1)), np.ones((2, 2, 3, 3)))
    # Far from the threshold: 36 numbers add up to something else in another order.
    scale = np.kron(rng.choice([1, 100], (4, 2, 1, 1)), np.ones((2, 2, 3, 3)))
    values = (signs * scale * rng.uniform(1, 2, (8, 4, 3, 3))).astype("f4")
    a, b = twins(lambda: nn.Sequential(nn.Conv2D(4, 8, 3)))
    for model in (a, b):
        model[0].weight.set_value(values)
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 10.0, sparse_block=[2, 2])
    theirs_step(theirs)
    same = ours.UnstructuredPruner(b, "threshold", 10.0, sparse_block=[2, 18])
    same.step()
    (mask,) = assert_same(theirs, same).values()
    assert 0 < np.count_nonzero(mask) < mask.size


def test_a_structured_skip_name_is_ignored_there_and_honoured_here():
    a, b = twins()

    def skip(model):
        return {"11.weight", *ours.default_skip_params(model)}

    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 0.1, skip_params_func=skip)
    mine = ours.UnstructuredPruner(b, "threshold", 0.1, skip_params_func=skip)
    theirs_step(theirs)
    theirs.update_params()
    mine.step()
    assert np.count_nonzero(a[11].weight.numpy()) < 1200  # of 1280
    assert np.count_nonzero(b[11].weight.numpy()) == 1280


def test_an_unknown_skip_name_is_ignored_there_and_refused_here():
    def skip(model):
        return {"no_such_layer"}

    theirs_step(slim(paddleslim.UnstructuredPruner, network(), "threshold", skip_params_func=skip))
    with pytest.raises(ValueError, match="no_such_layer"):
        ours.UnstructuredPruner(network(), "threshold", skip_params_func=skip)


@pytest.mark.parametrize(
    ("phases", "theirs_start", "theirs_target"),
    [
        ((10, 100, 50, 5), 0, 100),  # half a period of stable phase is no stable phase
        ((30, 100, 50, 5), 20, 120),  # a period and a half is one
        ((0, 59, 50, 5), 0, 55),  # periods of 11.8 iterations take 11
        ((165, 121, 50, 11), 154, 275),  # 15 whole periods, but 165 / 121 * 11 is 14.999...
    ],
)
def test_gmp_phases_are_cut_short_there_and_exact_here(phases, theirs_start, theirs_target):
    stable, pruning, tunning, _ = phases
    theirs, mine = gmp_twins(gmp_configs(*phases))
    their_ratios, my_ratios = [], []
    for _ in range(stable + pruning + tunning):
        theirs_step(theirs)
        mine.step()
        their_ratios.append(theirs.ratio)
        my_ratios.append(mine.ratio)

    def first(ratios, least):
        return next(i for i, ratio in enumerate(ratios) if ratio >= least)

    assert (first(their_ratios, 0.15), first(their_ratios, 0.75)) == (theirs_start, theirs_target)
    assert (first(my_ratios, 0.15), first(my_ratios, 0.75)) == (stable, stable + pruning)


def test_gmp_resumed_without_a_tuning_phase_is_late_there_and_at_its_target_here():
    """It rose over 44 iterations; resumed at the 50th, theirs waits for the next of 11 to begin."""
    theirs, mine = gmp_twins(gmp_configs(0, 44, 0, 4, resume=50))
    ratios = []
    for _ in range(50, 56):
        theirs_step(theirs)
        mine.step()
        ratios.append((theirs.ratio, mine.ratio))
    third = 0.15 + 0.6 * (1 - 0.25**3)  # the last of the four pieces
    assert ratios == [(pytest.approx(third), 0.75)] * 5 + [(0.75, 0.75)]


def test_static_masks_are_made_anew_by_a_step_there_and_kept_here():
    theirs, mine = (
        slim(p, hundred(), "threshold", threshold=0.5)
        for p in (paddleslim.UnstructuredPruner, ours.UnstructuredPruner)
    )
    for pruner in (theirs, mine):
        weight = pruner.model[0].weight
        weight.set_value(np.where(np.arange(100) < 10, 0, weight.numpy().ravel()).reshape([10, 10]))
        pruner.set_static_masks()
    small = np.count_nonzero(np.abs(mine.model[0].weight.numpy()) < 0.5)
    theirs_step(theirs)
    mine.step()
    zeros = [100 - int(masks_of(p, ["0.weight"])["0.weight"].sum()) for p in (theirs, mine)]
    assert zeros == [small, 10]
    assert small > 10


def test_a_strategys_mask_parameters_is_left_out_of_update_params_there_and_used_here():
    theirs, mine = (
        slim(with_strategy(HalvesMasked)[i], hundred(), "threshold", threshold=50) for i in (0, 1)
    )
    for pruner in (theirs, mine):
        theirs_step(pruner)
        pruner.update_params()
    assert np.count_nonzero(theirs.model[0].weight.numpy()[0] == 0) == 10
    assert np.count_nonzero(mine.model[0].weight.numpy()[0] == 0) <= 1


def test_total_sparse_conv1x1_without_any_fails_there_and_is_0_here():
    with pytest.raises(ZeroDivisionError):
        paddleslim.UnstructuredPruner.total_sparse_conv1x1(hundred())
    assert ours.UnstructuredPruner.total_sparse_conv1x1(hundred()) == 0


def test_ten_iterations_a_piece_or_fewer_are_refused_by_gmp_there_and_taken_here():
    configs = gmp_configs(0, 20, 10, 5)
    with pytest.raises(AssertionError):
        slim(paddleslim.GMPUnstructuredPruner, network(), ratio=0.75, configs=configs)
    mine = ours.GMPUnstructuredPruner(network(), ratio=0.75, configs=configs)
    assert mine.ratio_at(20) == 0.75


def test_summarize_weights_counts_biases_there_and_only_what_can_be_pruned_here():
    a, b = twins(lambda: nn.Sequential(nn.Linear(10, 10)))
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold")
    mine = ours.UnstructuredPruner(b, "threshold")
    ordered = np.sort(np.abs(a[0].weight.numpy()), axis=None)
    assert theirs.summarize_weights(a, 0.3) == ordered[33 - 1 - 10]  # after ten biases of 0
    assert mine.summarize_weights(b, 0.3) == ordered[30]
