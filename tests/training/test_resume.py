"""Trainings that go on, also with gmp from weights that are pruned already."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import assert_same_end, error_line, metrics, weights

import train
from training import train_state
from training.folders import STATE, WEIGHTS

GMP = ["--pruning_strategy", "gmp", "--stable_epochs", "0", "--pruning_epochs", "2",
       "--tunning_epochs", "1", "--pruning_steps", "3", "--ratio", "0.75"]  # fmt: skip
RUNS = {
    "ratio": ["--pruning_mode", "ratio", "--step_epochs", "1", "2"],
    "threshold": ["--pruning_mode", "threshold", "--threshold", "0.05", "--num_workers", "2"],
    "gmp": [*GMP, "--lr_strategy", "cosine_decay", "--lr_hold_epochs", "1"],
    "dropout": ["--model", "mobilenet_v2", "--prune_period", "2"],
    "floors": ["--ratio", "0.95", "--min_layer_density", "0.03", "--min_channel_density", "0.01"],
    "all but the floors": [
        "--ratio",
        "0.5",
        "--min_layer_density",
        "0.5",
        "--freeze_masks_epoch",
        "1",
    ],
    "frozen": ["--ratio", "0.75", "--freeze_masks_epoch", "1"],
    "frozen gmp": [
        *GMP,
        "--pruning_epochs",
        "1",
        "--pruning_steps",
        "2",
        "--freeze_masks_epoch",
        "2",
    ],
    "safetensors": ["--format", "safetensors", "--distribution", "erk"],
    "accuracy": ["--label_smoothing", "0.1", "--ema", "0.9", "--recalibrate_bn", "1"],
}


@pytest.mark.parametrize("name", list(RUNS))
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(name, small, tmp_path):
    common = [*small, *RUNS[name], "--model_period", "1", "--test_period", "1", "--num_epochs", "3"]
    whole, epochs, inside = (tmp_path / folder for folder in ("whole", "epochs", "inside"))
    train.main([*common, "--model_path", str(whole)])
    # Three epochs of two steps, with a stop after the first epoch ...
    train.main([*common, "--model_path", str(epochs), "--max_steps", "2"])
    train.main([*common, "--model_path", str(epochs),
                "--pretrained_model", str(epochs), "--resume_epoch", "0"])  # fmt: skip
    assert_same_end(whole, epochs)
    # ... and with one inside an epoch, at its first and at its last step.
    for steps in ("1", "3", "4"):
        train.main([*common, "--model_path", str(inside), "--save_steps", "1", "--max_steps", steps,
                    "--resume_epoch", "latest"])  # fmt: skip
    train.main([*common, "--model_path", str(inside), "--resume_epoch", "latest"])
    assert_same_end(whole, inside)


@pytest.fixture(scope="module")
def pruned(cifar_dir, tmp_path_factory) -> Path:
    """A folder with weights that are pruned by half."""
    folder = tmp_path_factory.mktemp("pruned")
    train.main(["--data_dir", str(cifar_dir), "--scale", "0.25", "--batch_size", "16",
                "--num_workers", "0", "--use_gpu", "false", "--ratio", "0.5", "--num_epochs", "1",
                "--model_path", str(folder)])  # fmt: skip
    return folder


FROM_SPARSE = ["--pruning_strategy", "gmp", "--ratio", "0.75",
               "--pruning_epochs", "2", "--pruning_steps", "4", "--num_epochs", "4",
               "--model_period", "1", "--test_period", "1"]  # fmt: skip


def test_gmp_starts_from_the_sparsity_that_is_there(small, pruned, tmp_path, capsys):
    common = [*small, *FROM_SPARSE, "--pretrained_model", str(pruned)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*common, "--model_path", str(whole)])
    line = "the weights are 50.00% sparse: gmp starts at 50.00%"
    assert line in capsys.readouterr().out.splitlines()
    sparsities = [record["prunable_sparsity"] for record in metrics(whole)]
    # Four rises in the four steps of two epochs: 0.5 + 0.25 * (1 - (3/4, 1/2, 1/4, 0 ...)^3)
    wanted = [0.5 + 0.25 * 37 / 64, 0.5 + 0.25 * 63 / 64, 0.75, 0.75]
    # A little more: the floor keeps the masks of weights that were 0 in channels without any.
    assert sparsities == pytest.approx(wanted, abs=1e-3)
    for steps in ("1", "2", "3", "8"):  # the same command again and again
        train.main([*common, "--model_path", str(parts), "--save_steps", "1", "--max_steps", steps,
                    "--resume_epoch", "latest"])  # fmt: skip
    assert_same_end(whole, parts)


def test_an_initial_ratio_that_is_given_stays(small, pruned, tmp_path, capfd):
    common = [*small, *FROM_SPARSE, "--model_path", str(tmp_path), "--resume_epoch", "latest"]
    common += ["--stable_epochs", "1"]
    first = ["--pretrained_model", str(pruned), "--initial_ratio", "0.15"]
    train.main([*common, *first, "--max_steps", "3"])
    assert "sparse: gmp starts" not in capfd.readouterr().out
    sparsities = [record["prunable_sparsity"] for record in metrics(tmp_path)]
    # A stable epoch, in which weights come back but for those that get no gradient; then 0.15.
    assert max(sparsities) < 0.2
    assert train_state.read(tmp_path).masks_ratio == 0.15
    message = error_line(capfd, train.main, *common, "--initial_ratio", "0.25")
    assert "was trained with --initial_ratio 0.15;" in message
    train.main(common)  # without it: what was saved


def test_weights_that_are_sparser_than_the_target(small, pruned, tmp_path, capsys):
    train.main([*small, "--pruning_strategy", "gmp", "--ratio", "0.25", "--pruning_epochs", "1",
                "--pruning_steps", "2", "--num_epochs", "2", "--pretrained_model", str(pruned),
                "--model_path", str(tmp_path)])  # fmt: skip
    assert "are 50.00% sparse: gmp starts at 25.00%" in capsys.readouterr().out
    assert metrics(tmp_path)[0]["prunable_sparsity"] == pytest.approx(0.25, abs=1e-3)


def test_gmp_from_dense_weights(small, tmp_path, capsys):
    common = [*small, *FROM_SPARSE, "--stable_epochs", "1", "--model_path", str(tmp_path)]
    train.main([*common, "--max_steps", "2"])
    assert "sparse: gmp starts" not in capsys.readouterr().out
    assert metrics(tmp_path)[0]["prunable_sparsity"] == 0  # the stable epoch
    assert train_state.read(tmp_path).options["initial_ratio"] == 0.15
    train.main([*common, "--resume_epoch", "latest", "--max_steps", "3"])
    assert metrics(tmp_path)[1]["prunable_sparsity"] == pytest.approx(0.15, abs=1e-5)


def test_stable_epochs_that_would_let_weights_come_back_are_refused(small, pruned, tmp_path, capfd):
    common = [*small, *FROM_SPARSE, "--model_path", str(tmp_path / "a"), "--stable_epochs", "1"]
    message = error_line(capfd, train.main, *common, "--pretrained_model", pruned)
    assert "the weights are 50.00% sparse, and --stable_epochs 1 would let them come" in message
    # Of the weights that are to be pruned, not of all:
    few = weights(pruned / WEIGHTS)
    few = {k: np.where(v == 0, 1e-3, v) if v.shape[2:] == (1, 1) else v for k, v in few.items()}
    paddle.save({k: v.astype("float32") for k, v in few.items()}, str(tmp_path / "few.pdparams"))
    start = ["--pretrained_model", str(tmp_path / "few.pdparams"), "--max_steps", "1"]
    train.main([*common, *start, "--prune_params_type", "conv1x1_only"])
    assert "sparse: gmp" not in capfd.readouterr().out
    error_line(capfd, train.main, *common, *start)


def test_gmp_that_goes_on_from_another_strategy_starts_at_its_sparsity(small, tmp_path, capfd):
    common = [*small, "--model_path", str(tmp_path), "--num_epochs", "4", "--ratio", "0.6"]
    train.main([*common, "--max_steps", "2"])
    gmp = ["--pruning_strategy", "gmp", "--pruning_epochs", "2", "--pruning_steps", "4",
           "--ratio", "0.8", "--resume_epoch", "latest", "--force", "--max_steps", "3"]  # fmt: skip
    train.main([*common, *gmp])
    assert "the weights are 60.00% sparse: gmp starts at 60.00%" in capfd.readouterr().out
    assert metrics(tmp_path)[1]["prunable_sparsity"] >= 0.6


def test_gmp_that_goes_on_from_dense_training_counts_all_steps(small, tmp_path):
    common = [*small, "--model_path", str(tmp_path), "--num_epochs", "4", "--max_steps"]
    train.main([*common, "2", "--pruning_mode", "none"])
    gmp = ["--pruning_strategy", "gmp", "--pruning_epochs", "2", "--pruning_steps", "4",
           "--ratio", "0.6", "--resume_epoch", "latest", "--force"]  # fmt: skip
    train.main([*common, "3", *gmp])
    # The third of four rises: 1 - (1/2)^3 of the way from 0.15 to 0.6
    assert train_state.read(tmp_path).masks_ratio == pytest.approx(0.15 + 0.45 * 7 / 8)
    gmp[gmp.index("0.6")] = "0.1"
    train.main([*common, "4", *gmp])  # below the first ratio, which was not given


def test_zeros_in_other_layers_than_a_distribution_would_have_are_told(
    small, pruned, tmp_path, capfd
):
    common = [*small, *FROM_SPARSE, "--pretrained_model", str(pruned), "--max_steps", "1"]
    warning = "warning: if other layers or blocks of them are zero than are to be pruned, some come"
    for more, said in (([], 0), (["--local_sparsity"], 1), (["--sparse_block", "2", "1"], 1)):
        train.main([*common, *more, "--model_path", str(tmp_path)])
        assert capfd.readouterr().err.count(warning) == said


def test_options_that_have_to_stay(small, tmp_path, capfd):
    common = [*small, "--model_path", tmp_path, "--resume_epoch", "latest"]
    cosine = [*common, "--lr_strategy", "cosine_decay"]
    train.main([str(word) for word in (*cosine, "--num_epochs", 2, "--max_steps", 3)])
    for options in (["--num_epochs", 3], ["--ratio", 0.4, "--num_epochs", 2]):
        message = error_line(capfd, train.main, *cosine, *options)
        assert f"{options[0]} " in message
        assert "or --force" in message
    message = error_line(capfd, train.main, *cosine, "--num_epochs", 2, "--force",
                         "--batch_size", 2)  # fmt: skip
    assert "inside an epoch the data set and the global batch size cannot change" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label_smoothing", "0.1"], "--label_smoothing 0.0"),
        (["--teacher", "TEACHER"], "no --teacher"),
        (["--ema", "0.9"], "no --ema"),
        (["--recalibrate_bn", "2"], "--recalibrate_bn 0"),
    ],
)  # fmt: skip
def test_a_state_of_before_an_option_goes_on_without_it(options, words, small, tmp_path, capfd):
    whole, part = tmp_path / "whole", tmp_path / "part"
    common = [*small, "--num_epochs", "2", "--model_period", "1", "--test_period", "1"]
    train.main([*common, "--model_path", str(whole)])
    common += ["--resume_epoch", "latest", "--model_path", str(part)]
    train.main([*common, "--max_steps", "2"])
    state = json.loads((part / "epoch-0" / STATE).read_text())
    later = {name for name in state["options"] if name.startswith(options[0][2:])}
    state["options"] = {n: value for n, value in state["options"].items() if n not in later}
    train_state.seal(state, part / "epoch-0")
    options = [str(whole) if word == "TEACHER" else word for word in options]
    message = error_line(capfd, train.main, *common, *options)
    assert message.endswith(f"was trained with {words}; give the same, or --force")
    train.main(common)
    assert_same_end(whole, part)


def test_a_line_of_metrics_that_was_cut_short_is_taken_out(small, tmp_path):
    common = [*small, "--num_epochs", "2", "--model_period", "1", "--save_steps", "3"]
    folder = ["--model_path", str(tmp_path)]
    train.main([*common, *folder, "--max_steps", "3"])
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines[: len(lines) - 40])
    train.main([*common, *folder, "--pretrained_model", str(tmp_path), "--resume_epoch", "0"])
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1]


def test_more_steps_than_max_steps_are_the_end(small, tmp_path, capsys):
    common = [*small, "--num_epochs", "3", "--model_path", str(tmp_path)]
    train.main([*common, "--max_steps", "3"])
    capsys.readouterr()
    train.main([*common, "--max_steps", "2", "--resume_epoch", "latest"])
    assert "nothing is left to do" in capsys.readouterr().out


def test_the_order_of_patterns_has_to_stay(small, tmp_path, capfd):
    common = [*small, "--num_epochs", "2", "--model_path", str(tmp_path), "--max_steps", "1"]
    train.main([*common, "--distribution", "fc.weight=0.9,*weight=0.3"])
    message = error_line(capfd, train.main, *common[:-1], 2, "--resume_epoch", "latest",
                         "--distribution", "*weight=0.3,fc.weight=0.9")  # fmt: skip
    assert "--distribution" in message
