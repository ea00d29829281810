"""benchmarks/soak.py: killed trainings end where undisturbed ones do, and it would say if not."""

import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, weights

import train
from benchmarks import soak
from training import folders, train_state

EQUAL = "weights, optimizer, masks and metrics are equal bit for bit"


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by /proc")
def test_killed_trainings_end_where_undisturbed_ones_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--kills", "3", "--epochs", "1",
         "--work_dir", tmp_path],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"one process: 2 kills, 1 while saving: {EQUAL}",
        f"two ranks: 1 kills, 0 while saving: {EQUAL}",
    ]
    kills = [line for line in done.stderr.splitlines() if line.startswith("kill ")]
    assert [line.split(": ", 1)[1].rsplit(", ", 1)[0] for line in kills] == [
        "one process, random",
        "two ranks, rank 0, random",
        "one process, while saving",
    ]


def test_a_single_flipped_bit_is_reported(small, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train.main([*small, "--num_epochs", "1", "--model_path", str(first)])
    shutil.copytree(first, second, symlinks=True)
    assert soak.difference(first, second) == ""
    path = second / "epoch-0" / folders.WEIGHTS
    state = weights(path)
    name = next(iter(state))
    state[name].reshape(-1).view(np.uint8)[0] ^= 1
    paddle.save({key: paddle.to_tensor(value) for key, value in state.items()}, str(path))
    train_state.write(train_state.read(path.parent), path.parent)  # whole, but not the same
    assert soak.difference(first, second) == f"weights: {name}"
