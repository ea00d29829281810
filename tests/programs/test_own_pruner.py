"""A pruner of one's own in train.py."""

from __future__ import annotations

from functools import partial

import numpy as np
from conftest import assert_same_end, error_line, weights
from documents import blocks

import train
from training.folders import WEIGHTS
from unstructured_pruner import UnstructuredPruner


class LargestPruner(UnstructuredPruner):
    """Prunes the largest weights, and what is 0 already."""

    def scores(self, name, param):
        return (param != 0).astype("float32") / (1 + param.abs())


def test_it_decides_what_is_pruned(small, tmp_path):
    options = [*small, "--num_epochs", "1", "--lr", "0", "--ratio", "0.25", "--model_path"]
    train.main([*options, str(tmp_path / "own")], pruner_class=LargestPruner)
    train.main([*options, str(tmp_path / "default")])  # at --lr 0 what it keeps has not moved
    own, default = (weights(tmp_path / name / WEIGHTS) for name in ("own", "default"))
    kept = np.concatenate([np.abs(v[v != 0]) for v in own.values() if v.ndim > 1])
    largest = np.concatenate([np.abs(v[v != 0]) for v in default.values() if v.ndim > 1])
    assert kept.size == largest.size > 0
    assert np.sort(largest)[-1] > kept.max()
    lost = sum(np.count_nonzero(own[name] == 0) for name, v in own.items() if v.ndim > 1)
    assert lost == round(0.25 * (lost + kept.size))


def test_gmp_has_its_own(small, tmp_path, capfd):
    gmp = ["--pruning_strategy", "gmp", "--num_epochs", 4, "--pruning_epochs", 2]
    main = partial(train.main, pruner_class=LargestPruner)
    message = error_line(capfd, main, *small, *gmp, "--data_dir", "none", "--model_path", tmp_path)
    assert message == "train.py: error: LargestPruner needs --pruning_strategy base"


def test_rigl_of_the_documents_is_resumed_exactly(small, tmp_path):
    names = {}
    exec(blocks("docs/rigl.md", "python")[0].partition("\nmodel = ")[0], names)
    main = partial(train.main, pruner_class=names["RigLPruner"])
    common = [*small, "--ratio", "0.8", "--distribution", "erk", "--prune_period", "2",
              "--num_epochs", "3", "--model_period", "1", "--test_period", "1"]  # fmt: skip
    main([*common, "--model_path", str(tmp_path / "whole")])
    for steps in ("3", "6"):  # masks move in steps 0, 2 and 4
        main([*common, "--model_path", str(tmp_path / "parts"), "--save_steps", "1",
              "--max_steps", steps, "--resume_epoch", "latest"])  # fmt: skip
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
