"""Gradual magnitude pruning: as PaddleSlim has it, and where it differs on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from paddle import nn
from twins import masks_of, network, paddleslim, prunable, slim, theirs_step, train, twins

import unstructured_pruner as ours
from unstructured_pruning.schedules import gmp_ratio


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


def test_ten_iterations_a_piece_or_fewer_are_refused_by_gmp_there_and_taken_here():
    configs = gmp_configs(0, 20, 10, 5)
    with pytest.raises(AssertionError):
        slim(paddleslim.GMPUnstructuredPruner, network(), ratio=0.75, configs=configs)
    mine = ours.GMPUnstructuredPruner(network(), ratio=0.75, configs=configs)
    assert mine.ratio_at(20) == 0.75
