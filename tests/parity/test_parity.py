"""Does the pruner compute what PaddleSlim's computes?

    bash run.sh parity          # or: python -m pytest tests/parity

Needs Paddle 2.6.2 and PaddleSlim 2.6.0, its last release. Both pruners train copies of one small
network on the same data, and after every step all prunable weights and masks are the same, bit for
bit (+0.0 and -0.0 are both 0).
"""

from __future__ import annotations

import numpy as np
import pytest
from paddle import nn
from twins import (
    HalvesMasked,
    assert_same,
    masks_of,
    one_fewer,
    paddleslim,
    prunable,
    slim,
    theirs_step,
    train,
    twins,
    with_strategy,
)

import unstructured_pruner as ours


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


class MeanMagnitude:
    """A strategy that prunes what is smaller than the mean magnitude of all matrices."""

    def update_threshold(self):
        matrices = [p.numpy().ravel() for p in self.model.parameters() if p.ndim > 1]
        self.threshold = float(np.abs(np.concatenate(matrices)).mean())


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
