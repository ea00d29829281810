"""Gradual magnitude pruning."""

from __future__ import annotations

import numpy as np
import pytest
from pruned_nets import masks_of, net_of

from unstructured_pruner import GMPUnstructuredPruner

CONFIGS = {"stable_iterations": 1, "pruning_iterations": 4, "tunning_iterations": 2,
           "pruning_steps": 2, "initial_ratio": 0.25}  # fmt: skip


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
    for steps in range(8):
        configs = {**CONFIGS, "resume_iteration": steps}
        pruner = GMPUnstructuredPruner(net_of([range(1, 17)]), ratio=0.75, configs=configs)
        assert pruner.ratio == done.ratio
        other = GMPUnstructuredPruner(net_of([range(1, 17)]), ratio=0.75, configs=CONFIGS)
        other.set_state_dict(pruner.state_dict())  # whose masks are all True still
        done.step()
        other.step()
        assert masks_of(other) == masks_of(done)


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
        zeros.append([int((np.array(mask) == 0).sum()) for mask in masks_of(pruner)])
    # ratios 0, 0.125, 0.125, 0.453125, ..., 0.5, split 1 to 3: of 16, 1/16 and 3/16 at 0.125
    assert [zeros[0], zeros[1], zeros[5]] == [[0, 0], [1, 3], [4, 12]]
    pruner = GMPUnstructuredPruner(net_of([[1.0, 2, 3, 4]]), ratio=0.5, prune_period=1,
                                   configs={**CONFIGS, "resume_iteration": 9})  # fmt: skip
    pruner.step()
    pruner.model.w0.set_value(np.float32([[9, 8, 2, 1]]))
    pruner.step()
    assert masks_of(pruner) == [[[1, 1, 0, 0]]]
