"""results/repeat.py: the command line of a saved training."""

from __future__ import annotations

import shlex

import pytest
from conftest import assert_same_end

import train
from results.repeat import evaluate_command, train_command
from training import train_state
from training.options import parse_training


@pytest.mark.parametrize(
    "line",
    [
        "--data digits",
        "--data digits --scale 0.25 --num_epochs 8 --use_gpu false --num_classes 12",
        "--data imagenet --pruning_mode threshold --threshold 0.03 --data_dir 'a b'",
        "--data imagenet --use_pretrained false --model resnet50 --amp --step_epochs 3 9",
        "--ratio 0.75 --pruning_strategy gmp --pruning_epochs 60 --initial_ratio 0.2",
        "--distribution conv*=0.6,fc.weight=0.9 --ema 0.99 --data_dir=-x",
        "--local_sparsity true --sparse_block 4 1 --pretrained_model models --resume_epoch 9",
        "--data voc --image_size 320 --train_sizes 320 416 --augmentation flip",
    ],
)
def test_the_command_is_the_one_that_was_given(line, tmp_path):
    args = parse_training("", shlex.split(line))
    options = {**vars(args), "fast_convolutions": True}
    saved = train_state.Saved(tmp_path, options, ranks=1)
    python, program, *words = train_command(saved)
    assert (python, program) == ("python", "train.py")
    again = vars(parse_training("", words))
    given = {name: value for name, value in options.items() if value is not None}
    del given["fast_convolutions"]
    assert {name: again[name] for name in given} == given
    assert len(words) <= len(shlex.split(line)) + 2  # no more than that, and --data


def test_the_command_trains_the_same_once_more(trained, tmp_path):
    words = train_command(train_state.read(trained))
    train.main([*words[2:], "--model_path", str(tmp_path)])
    assert_same_end(tmp_path, trained.parent)


def test_the_command_of_a_run_that_went_on(tmp_path):
    options = {"data": "digits", "force": True, "pretrained_model": "dense"}
    for epoch, forced in (("latest", False), (3, True)):
        saved = train_state.Saved(tmp_path, {**options, "resume_epoch": epoch}, ranks=1)
        assert ("--force" in train_command(saved)) == forced


def test_the_initial_ratio_of_gmp_is_its_default(tmp_path):
    options = {"data": "digits", "pruning_strategy": "gmp", "initial_ratio": 0.15}
    for start, given in ((None, False), ("sparse", True)):
        saved = train_state.Saved(tmp_path, {**options, "pretrained_model": start}, ranks=1)
        assert ("--initial_ratio" in train_command(saved)) == given


def test_a_path_that_looks_like_an_option(tmp_path):
    saved = train_state.Saved(tmp_path, {"model_path": "-y", "data_dir": "-x"}, ranks=1)
    words = ["python", "evaluate.py", "--pruned_model=-y", "--data_dir=-x"]
    assert evaluate_command(saved) == words


def test_the_command_of_several_processes(tmp_path):
    saved = train_state.Saved(tmp_path, {"data": "digits"}, ranks=4)
    launcher = "python -m paddle.distributed.launch --nproc_per_node 4 train.py --data digits"
    assert shlex.join(train_command(saved)) == f"{launcher} --fast_convolutions false"
