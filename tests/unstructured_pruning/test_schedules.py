"""Ratios over steps and over parameters, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from unstructured_pruning.schedules import erk_ratios, gmp_ratio, pattern_ratios


def test_gmp_ratio_step_by_step():
    # 2 dense steps; 6 in 3 pieces of a cubic from 0.2 to 0.8; then the target.
    # pieces: 0.2 + 0.6 * (1 - (1 - i/3)^3) = 0.2, 0.2 + 0.6 * 19/27, 0.2 + 0.6 * 26/27
    table = [0, 0, 0.2, 0.2, 0.6222222, 0.6222222, 0.7777778, 0.7777778, 0.8, 0.8]
    assert [gmp_ratio(i, 2, 6, 3, 0.2, 0.8) for i in range(10)] == pytest.approx(table)
    assert gmp_ratio(8, 2, 6, 3, 0.2, 0.8) == 0.8


def test_gmp_ratio_in_pieces_that_do_not_divide_the_phase():
    # 7 iterations in 3 pieces: 0 1 2 | 3 4 | 5 6, then the target at once.
    ratios = [gmp_ratio(i, 0, 7, 3, 0.0, 0.9) for i in range(9)]
    assert len(set(ratios)) == 4
    assert [ratios.index(r) for r in ratios] == [0, 0, 0, 3, 3, 5, 5, 7, 7]
    assert ratios[7] == 0.9


def test_gmp_ratio_without_a_pruning_phase():
    assert [gmp_ratio(i, 1, 0, 1, 0.1, 0.5) for i in range(3)] == [0, 0.5, 0.5]


def test_erk_ratios():
    # raw densities (2+8)/16 = 0.625 and (4+4)/16 = 0.5; half of 32 weights stay:
    # scale * (0.625 * 16 + 0.5 * 16) = 16, so scale = 8/9 and densities 0.5556, 0.4444
    ratios = erk_ratios({"a": [2, 8], "b": [4, 4]}, 0.5)
    assert ratios == pytest.approx({"a": 1 - 0.625 * 8 / 9, "b": 1 - 0.5 * 8 / 9})


def test_erk_ratios_of_a_parameter_that_would_be_more_than_dense():
    # [1, 2] has raw density 1.5, [10, 10] 0.2; 51 of 102 stay: scale * (3 + 20) = 51 makes the
    # first 3.3; so it is dense, and the other keeps 51 - 2 of its 100.
    ratios = erk_ratios({"small": [1, 2], "large": [10, 10]}, 0.5)
    assert ratios == pytest.approx({"small": 0.0, "large": 0.51})


@pytest.mark.parametrize(("ratio", "each"), [(0.0, 0.0), (1.0, 1.0)])
def test_erk_ratios_at_the_ends(ratio, each):
    assert erk_ratios({"a": [2, 8], "b": [4, 4]}, ratio) == {"a": each, "b": each}


def test_pattern_ratios():
    names = ["conv1.weight", "conv2.weight", "fc.weight"]
    assert pattern_ratios(names, {"conv1*": 0.1, "conv*": 0.6}) == {
        "conv1.weight": 0.1, "conv2.weight": 0.6, "fc.weight": 0.0}  # fmt: skip
    with pytest.raises(ValueError, match=r"no prunable parameter matches 'cnov\*'"):
        pattern_ratios(names, {"cnov*": 0.5})
    with pytest.raises(ValueError, match=r"the ratio of 'fc\*' must be in \[0, 1\], got 2"):
        pattern_ratios(names, {"fc*": 2})
