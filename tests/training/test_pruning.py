"""The options of pruning: what stays of every layer and channel, masks that stay as they are."""

import json

import numpy as np
import pytest
from conftest import assert_same_end, error_line, metrics, weights

import train
from training import initial, train_state
from training.folders import MASKS, STATE, WEIGHTS
from training.options import parse_training
from training.resume import BEFORE, LASTING, different_options
from unstructured_pruner import UnstructuredPruner

GMP = ["--pruning_strategy", "gmp", "--pruning_epochs", "2", "--pruning_steps", "2",
       "--ratio", "0.95", "--num_epochs", "3", "--model_period", "1",
       "--test_period", "1"]  # fmt: skip
NO_FLOORS = ["--min_layer_density", "0", "--min_channel_density", "0"]
AS_BEFORE = [*NO_FLOORS, "--fast_convolutions", "false"]


def densities(folder) -> list[float]:
    """Of the prunable weights of MobileNetV1."""
    return [np.mean(v != 0) for v in weights(folder / WEIGHTS).values() if v.ndim > 1]


def test_gmp_keeps_some_of_every_layer_by_default(small, tmp_path):
    train.main([*small, *GMP, "--model_path", str(tmp_path / "floors")])
    train.main([*small, *GMP, *NO_FLOORS, "--model_path", str(tmp_path / "none")])
    assert min(densities(tmp_path / "floors")) >= 0.01 > min(densities(tmp_path / "none"))
    for name in ("floors", "none"):
        assert metrics(tmp_path / name)[-1]["prunable_sparsity"] == pytest.approx(0.95, abs=1e-5)


def test_floors_of_channels_and_of_other_strategies(small, tmp_path):
    options = ["--ratio", "0.9", "--num_epochs", "1", "--min_channel_density", "0.01"]
    train.main([*small, *options, "--model_path", str(tmp_path)])
    for name, values in weights(tmp_path / WEIGHTS).items():
        if values.ndim > 1:
            axes = 0 if values.ndim == 2 else (1, 2, 3)
            assert (values != 0).any(axis=axes).all(), name


def without_newer_options(folder) -> None:
    """Makes the newest checkpoint one that was saved before there were these options."""
    path = (folder / STATE).resolve().parent
    state = json.loads((path / STATE).read_text())
    state["options"] = {k: v for k, v in state["options"].items() if k not in BEFORE}
    train_state.seal(state, path)


@pytest.mark.parametrize("epoch", ["0", "latest"])
def test_a_run_begun_before_there_were_floors_goes_on_without(epoch, small, tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*small, *GMP, *AS_BEFORE, "--model_path", str(whole)])
    assert min(densities(whole)) < 0.01  # the default of today would do something
    train.main([*small, *GMP, *AS_BEFORE, "--model_path", str(parts), "--max_steps", "2"])
    without_newer_options(parts)
    common = [*small, *GMP, "--model_path", str(parts), "--resume_epoch", epoch,
              "--pretrained_model", str(parts)]  # fmt: skip
    for option, before in (
        ("--min_layer_density", "--min_layer_density 0.0"),
        ("--min_channel_density", "--min_channel_density 0.0"),
    ):
        message = error_line(capfd, train.main, *common, option, "0.02")
        assert message.endswith(f"was trained with {before}; give the same, or --force")
    train.main(common)
    assert_same_end(whole, parts)
    assert train_state.read(parts).options["min_layer_density"] == 0


def test_a_floor_that_is_given_with_force_is_taken(small, tmp_path):
    common = [*small, *GMP, "--model_path", str(tmp_path), "--resume_epoch", "latest"]
    train.main([*common, *AS_BEFORE, "--max_steps", "2"])
    without_newer_options(tmp_path)
    train.main([*common, "--force", "--min_layer_density", "0.03"])
    assert min(densities(tmp_path)) >= 0.03


def test_frozen_masks_stay_and_others_move(small, tmp_path):
    masks = {}
    for name, options in (("frozen", ["--freeze_masks_epoch", "1"]), ("moving", [])):
        folder = tmp_path / name
        train.main([*small, "--num_epochs", "3", "--model_period", "1", "--ratio", "0.75", *options,
                    "--model_path", str(folder)])  # fmt: skip
        masks[name] = [(folder / f"epoch-{i}" / MASKS).read_bytes() for i in range(3)]
    assert masks["frozen"][0] == masks["moving"][0] != masks["moving"][1]
    assert masks["frozen"] == [masks["frozen"][0]] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pruning_mode", "none", "--min_layer_density", "0.1"],
         "--min_layer_density: nothing is pruned with --pruning_mode none"),
        (["--pruning_mode", "none", "--freeze_masks_epoch", "2"],
         "--freeze_masks_epoch: nothing is pruned with --pruning_mode none"),
        (["--static_masks", "--pretrained_model", "x", "--min_channel_density", "0.1"],
         "--min_channel_density: no new masks are made with --static_masks"),
        (["--static_masks", "--pretrained_model", "x", "--freeze_masks_epoch", "2"],
         "--freeze_masks_epoch: no new masks are made with --static_masks"),
        (["--sparse_block", "4", "1", "--min_layer_density", "0.1"],
         "--min_layer_density: this needs --sparse_block 1 1"),
        (["--min_layer_density", "2"],
         "argument --min_layer_density: must be a number in [0, 1], got 2; did you mean 0.02?"),
        (["--freeze_masks_epoch", "0"],
         "argument --freeze_masks_epoch: must be a whole number >= 1, got 0"),
        ([*GMP, "--freeze_masks_epoch", "2"],
         "--freeze_masks_epoch 2: the masks are at --ratio in epoch 2, the end of the rise; give "
         "3 or more"),
        (["--num_epochs", "3", "--freeze_masks_epoch", "3"],
         "--freeze_masks_epoch 3 is after the last epoch of --num_epochs 3; lower it"),
        ([*GMP, "--ratio", "0.99", "--min_layer_density", "0.01"],
         "ratio 0.99 cannot be met: with min_layer_density=0.01 it can be 0.9899 at most; lower "
         "one of them"),
        (["--ratio", "0.9", "--min_layer_density", "0.2"],
         "ratio 0.9 cannot be met: with min_layer_density=0.2 it can be 0.7999 at most; lower one "
         "of them"),
    ],
)  # fmt: skip
def test_refusals(options, message, small, tmp_path, capfd):
    line = error_line(capfd, train.main, *small, *options, "--model_path", tmp_path / "models")
    assert line.endswith(f"error: {message}")


@pytest.mark.parametrize(
    "options",
    [
        [*GMP, "--sparse_block", "4", "1"],  # of which the default is 0
        [*GMP, "--sparse_block", "4", "1", *NO_FLOORS],
        [*GMP, "--ratio", "0.9899", "--min_layer_density", "0.01", "--min_channel_density", "0"],
        [*GMP, "--num_epochs", "4", "--freeze_masks_epoch", "3"],
        ["--pruning_mode", "none", *NO_FLOORS],
    ],
)
def test_what_is_not_refused(options, small, tmp_path):
    train.main([*small, *options, "--model_path", str(tmp_path), "--max_steps", "1"])


def test_default_floors_give_way_to_nothing_else(small, tmp_path, monkeypatch, capfd):
    def refuse(*arguments, **more):
        raise ValueError("of another kind")

    monkeypatch.setattr(initial, "UnstructuredPruner", refuse)
    line = error_line(capfd, train.main, *small, *GMP, "--model_path", tmp_path)
    assert line.endswith("error: of another kind")
    assert "left out" not in capfd.readouterr().out


def test_default_floors_give_way_to_the_ratio(small, tmp_path, capfd):
    """Which is that of an upstream command, and with which a resume goes on."""
    common = [*small, *GMP, "--ratio", "0.99", "--model_path", str(tmp_path)]
    train.main([*common, "--max_steps", "3"])
    assert "gmp's default floors are left out: ratio 0.99 cannot be met" in capfd.readouterr().out
    assert train_state.read(tmp_path).options["min_layer_density"] == 0
    train.main([*common, "--resume_epoch", "latest"])
    assert metrics(tmp_path)[-1]["prunable_sparsity"] == pytest.approx(0.99, abs=1e-5)


def test_a_pruner_without_floors_of_its_own_still_works(small, tmp_path):
    class Pruner(UnstructuredPruner):
        def __init__(self, model, mode, threshold, ratio, prune_params_type, local_sparsity,
                     sparse_block, distribution, prune_period):  # fmt: skip
            super().__init__(model, mode, threshold, ratio)

    options = [*small, "--max_steps", "1", "--model_path", str(tmp_path)]
    train.main(options, pruner_class=Pruner)


def test_each_option_that_lasts_is_named_where_it_differs():
    args = parse_training("", ["--pruning_strategy", "gmp", "--lr_strategy", "cosine_decay"])
    args.teacher_sha256 = args.teacher = None
    args.num_classes, args.min_layer_density, args.min_channel_density = 10, 0.01, 0.0
    idle = {"step_epochs", "threshold"}
    for name in set(LASTING) - idle:
        saved = {**vars(args), name: "x" * 64}
        [named] = different_options(args, saved)
        assert name.replace("_sha256", "") in named
    for name in idle:
        assert not different_options(args, {**vars(args), name: "other"})
