"""Different on purpose: a test for each of PaddleSlim's defects, with its result, then ours."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from twins import (
    HalvesMasked,
    masks_of,
    network,
    paddleslim,
    slim,
    theirs_step,
    twins,
    with_strategy,
)

import unstructured_pruner as ours


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


def test_summarize_weights_counts_biases_there_and_only_what_can_be_pruned_here():
    a, b = twins(lambda: nn.Sequential(nn.Linear(10, 10)))
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold")
    mine = ours.UnstructuredPruner(b, "threshold")
    ordered = np.sort(np.abs(a[0].weight.numpy()), axis=None)
    assert theirs.summarize_weights(a, 0.3) == ordered[33 - 1 - 10]  # after ten biases of 0
    assert mine.summarize_weights(b, 0.3) == ordered[30]
