"""What programs do before Paddle is there: wrong command lines, --help, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAMS = ["train.py", "evaluate.py", "export.py"]
WITHOUT_PADDLE = """
import runpy, sys
program, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = program
sys.path.insert(0, sys.path.pop(0).rpartition("/")[0] or ".")
try:
    runpy.run_path(program, run_name="__main__")
finally:
    heavy = {"paddle", "numpy", "cv2", "tqdm"} & set(sys.modules)
    print("imported:", *sorted(heavy))
"""


def start(tmp_path, program, *options, **environment):
    script = tmp_path / "without_paddle.py"
    script.write_text(WITHOUT_PADDLE)
    return subprocess.run(
        [sys.executable, script, ROOT / program, *options], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("train.py", ["--epochs", "3"], "there is no option --epochs: did you mean --num_epochs?"),
        ("train.py", ["--prunig_mode=none"],
         "there is no option --prunig_mode: did you mean --pruning_mode?"),
        ("train.py", ["--learning_rate", "0.1"],
         "there is no option --learning_rate: did you mean --lr?"),
        ("train.py", ["--zzz"], "there is no option --zzz: --help shows all"),
        ("train.py", ["digits"], "'digits' belongs to no option"),
        ("train.py", ["--ratio", "55"],
         "argument --ratio: must be a number in [0, 1], got 55; did you mean 0.55?"),
        ("train.py", ["--momentum_rate", "9"],
         "argument --momentum_rate: must be a number in [0, 1], got 9"),
        ("train.py", ["--ratio", "1.2"], "argument --ratio: must be a number in [0, 1], got 1.2"),
        ("train.py", ["--distribution", "conv*=60"],
         "argument --distribution: must be a number in [0, 1], got 60; did you mean 0.6?"),
        ("train.py", ["--resume_epoch", "last"],
         "argument --resume_epoch/--last_epoch: must be a whole number >= -1, got last; "
         "or 'latest'"),
        ("train.py", ["--static_masks", "--pretrained_model", "x", "--ratio", "0.55"],
         "--ratio: --static_masks keeps the zeros that are there"),
        ("train.py", ["--data", "digits", "--data_dir", "x"],
         "--data_dir: --data digits needs no folder"),
        ("train.py", ["--model", "yolov3"], "--model yolov3 needs --data voc"),
        ("evaluate.py", ["--pruned", "x", "--thread", "2"],
         "--threads is of --runtime; OMP_NUM_THREADS sets Paddle's own"),
        ("evaluate.py", ["--data", "digits", "--data_dir", "x"],
         "--data_dir: --data digits needs no folder"),
        ("export.py", ["--format", "sparse", "--output", "x"],
         "there is no option --output: did you mean --out?"),
        ("export.py", ["--format", "sparse"], "--out must be given, or --what_if"),
        ("export.py", ["--pruned_model", "x"], "--format and --out must be given, or --what_if"),
        ("export.py", ["--what_if", "0.75", "--out", "x"],
         "--what_if writes nothing: leave --format and --out out"),
        ("export.py", ["--what_if", "75"],
         "argument --what_if: must be a number in [0, 1], got 75; did you mean 0.75?"),
        ("export.py", ["--format", "sparse", "--out", "x", "--num_class", "2", "--ratio", "2"],
         "there is no option --ratio: --help shows all"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_before_paddle_is_imported(
    program, options, message, tmp_path
):
    done = start(tmp_path, program, *options)
    assert done.stderr == f"{program}: error: {message}\n"
    assert done.stdout == "imported:\n"
    assert done.returncode == 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_needs_no_paddle(program, tmp_path):
    done = start(tmp_path, program, "--h")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--pruned_model" in done.stdout or "--pretrained_model" in done.stdout
    assert done.stdout.endswith("imported:\n")


def test_a_right_command_line_goes_on(tmp_path):
    done = start(tmp_path, "evaluate.py", "--pruned_model", str(tmp_path), "--scale", "0.5")
    assert done.returncode == 2
    assert "holds no model-pruned.pdparams" in done.stderr
    assert "paddle" in done.stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--epochs", "3"], "there is no option --epochs: did you mean --num_epochs?"),
        # Found when Paddle is there:
        (["--model", "resnet1"],
         "there is no model 'resnet1' for cifar10; did you mean resnet18?"),
    ],
    ids=["option", "model"],  # Paddle 2.6's launcher prints the environment, pytest's ids in it
)  # fmt: skip
def test_the_launcher_shows_the_error_once(option, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2",
         "--log_dir", tmp_path / "log", ROOT / "train.py", *option],
        capture_output=True, text=True,
    )  # fmt: skip
    line = f"train.py: error: {message}\n"
    assert (done.stdout + done.stderr).count(message) == 1
    assert (tmp_path / "log" / "workerlog.0").read_text() == line
    assert (tmp_path / "log" / "workerlog.1").read_text() == ""
    assert done.returncode == 2


def test_what_the_options_name_is_there():
    """Their lists stand twice, as nothing that needs Paddle may be imported for them."""
    from readers import voc as voc_reader
    from tasks import TASKS, classification, detection
    from training import checkpoint, options

    parser = options.parse_training("", ["--data", "voc"])
    assert list(TASKS) == options.DATA
    assert options.DETECTORS == detection.MODELS
    assert parser.model in detection.MODELS
    assert options.parse_training("", []).model in classification.MODELS
    for name, values in (
        ("format", checkpoint.FORMATS),
        ("augmentation", voc_reader.AUGMENTATIONS),
    ):
        for value in values:
            options.parse_training(
                "", ["--data", "voc", f"--{name}", value, "--mixup_epochs", "250"]
            )


def test_ctrl_c_is_pythons_own_while_a_program_runs():
    """(The handler of before leaves at once: what a program has begun would stay on the disk.)"""
    from training.command_line import _interrupted_early, one_line_errors

    before = signal.signal(signal.SIGINT, _interrupted_early)
    try:
        assert one_line_errors(lambda argv: signal.getsignal(signal.SIGINT))([]) is (
            signal.default_int_handler
        )
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("program", [*PROGRAMS, "-m demos.deploy"])
def test_ctrl_c_while_paddle_is_imported(program, tmp_path, terminal):
    (tmp_path / "paddle.py").write_text("import time\nprint('now', flush=True)\ntime.sleep(60)\n")
    options = ["--format", "onnx", "--out", tmp_path / "out"] if program == "export.py" else []
    run = subprocess.Popen(
        [sys.executable, *program.split(), *options], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    name = {"-m demos.deploy": "deploy.py"}.get(program, program)
    assert run.stdout.readline() == "now\n"
    run.send_signal(signal.SIGINT)
    out, errors = run.communicate(timeout=60)
    assert (out, errors, run.returncode) == ("", f"{name}: interrupted\n", 130)
