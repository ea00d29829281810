"""Every command and all code of the documents, and run.sh, run: on small data and for a step."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, TWINS, blocks, commands

import evaluate
import export
import train
from benchmarks.inference import compare as inference
from results import experiments, plots, report, sensitivity
from results.rows import DATA

SMALL_VOC = "--image_size 64 --train_sizes 64 64"
FEW = "--batch_size 2 --batch_size_for_validation 2 --num_workers 0 --max_steps 1"
SMALL = f"--scale 0.25 {FEW}"
ENGLISH = sorted(set(DOCUMENTS) - set(TWINS.values()))  # whose twins show the same commands
PROGRAMS = ("train.py", "evaluate.py", "export.py")  # and my_train.py
MODULES = (
    "benchmarks.inference.compare", "results.experiments", "results.plots", "results.report",
    "results.sensitivity",
)  # fmt: skip
MY_TRAIN = blocks("docs/custom-pruners.md", "python")[-1]


def runnable_commands() -> list[str]:
    """All but those of several machines or of hours, and the measurements, tested elsewhere."""
    shown = {command: None for document in ENGLISH for command in commands(document)}
    named = [c for c in shown if any(name in c for name in (*PROGRAMS, *MODULES))]
    return [c for c in named if "--nnodes" not in c and not c.endswith("--out my_results")]


@pytest.fixture(scope="module")
def trained(imagenet_dir, tmp_path_factory):
    """A folder that holds data at its default places, and models of an earlier training."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    for place in ("data/ILSVRC2012", "my_data"):
        (folder / place).symlink_to(imagenet_dir)
    (folder / "truck.jpg").symlink_to(imagenet_dir / "val 0.JPEG")
    small = SMALL.replace("--max_steps 1", "--num_epochs 10")
    options = f"--data imagenet --lr 0.05 --pruning_mode threshold --threshold 0.01 {small}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(options.split())
    return folder


@pytest.fixture(scope="module")
def trained_voc(voc_dir, tmp_path_factory):
    """The same for detection."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "VOCdevkit").symlink_to(voc_dir)
    options = f"--data voc --data_dir VOCdevkit {SMALL} {SMALL_VOC}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(options.split())
    return folder


@pytest.mark.parametrize("command", runnable_commands())
def test_documented_command(command, trained, trained_voc, tmp_path, monkeypatch, capfd):
    voc = "--data voc" in command
    monkeypatch.chdir(trained_voc if voc else trained)
    words = shlex.split(command.removeprefix("for try in 1 2 3; do ").partition(" && ")[0])
    if "export.py" in words:
        pytest.importorskip("paddle2onnx")
        what_if = "--what_if" in words
        export.main([*words[2:], *(["--image_size", "64"] if what_if else [])])
        shown = "accuracy was not looked at" if what_if else "difference from the model"
        assert shown in capfd.readouterr().out
        return
    if "--runtime" in words:
        pytest.importorskip("paddle2onnx")
        export.main(["--pruned_model", "models/", "--format", "sparse", "--out", "exported"])
    if "evaluate.py" in words:
        evaluate.main(words[2:])
        shown = "truck.jpg\n" if "--predict" in words else "map_11point" if voc else "top1"
        assert shown in capfd.readouterr().out
        assert "--show" not in words or len(list(Path("seen").iterdir())) == 5
        return
    if "my_train.py" in words:
        monkeypatch.chdir(tmp_path)
        Path("my_train.py").write_text(MY_TRAIN)
        monkeypatch.setattr(sys, "argv", [*words[1:], *SMALL.split()])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("my_train.py", run_name="__main__")
        assert not ended.value.code
        state = json.loads(Path("models/train-state.json").read_text())
        assert round(state["prunable_sparsity"], 2) == 0.75
        assert state["threshold"] < 0.01  # of squares over their sum; of magnitudes it is > 0.1
        return
    if "results.plots" in words:
        plots.main(words[3:])
        assert {path.stem for path in Path("pictures").iterdir()} == {"epochs", "layers", "weights"}
        return
    if "results.sensitivity" in words:
        sensitivity.main([*words[3:], "--ratios", "0.9", "--out", str(tmp_path)])
        assert capfd.readouterr().out.splitlines()[-1].startswith("--distribution 'conv1")
        return
    if "results.report" in words:
        report.main(words[3:])
        assert "</html>" in Path(words[words.index("--out") + 1]).read_text("utf-8")
        return
    if "benchmarks.inference.compare" in words:
        pytest.importorskip("paddle2onnx")
        words = [str(Path(word).resolve()) if word == "models/" else word for word in words]
        monkeypatch.chdir(tmp_path)
        if "--table" in words:
            records = (ROOT / "benchmarks" / "inference" / "inference.jsonl").read_text()
            Path("four.jsonl").write_text(records.replace('"trained"', '"uniform"'))
            Path("trained.jsonl").write_text(records.replace('"uniform"', '"trained"'))
        small = ["--rounds", "1", "--threads", "1", "--batch", "1", "--image_size", "32",
                 "--peers", "onnxruntime", "sparse", "--model", "mobilenet_v1"]  # fmt: skip
        inference.main([*words[3:], *small, "--scale", "0.25"])
        assert "fastest dense runtime" in capfd.readouterr().out
        return
    if "results.experiments" in words and "--table" in words:
        monkeypatch.chdir(ROOT)
        experiments.main(words[3:])
        assert re.search(r"\| GMP +\| +95% \|", capfd.readouterr().out)
        return
    if "results.experiments" in words:
        monkeypatch.chdir(tmp_path)
        digits = ["--data", "digits", "--scale", "0.1", "--batch_size", "256"]
        monkeypatch.setattr(DATA["digits"], "options", digits)
        experiments.main([*words[3:], "--epochs", "1", "--jobs", "1", "--seeds", "1"])
        assert re.search(r"\| ratio +\| +55% \|", capfd.readouterr().out)
        return
    small = SMALL.split() + voc * SMALL_VOC.split()
    if "--teacher dense" in command:  # it has to name the network of Imagenette's rows itself
        small, imagenette = FEW.split(), DATA["imagenette"]
        train.main([*imagenette.options, *imagenette.dense, *small, "--model_path", "dense"])
    small += ["--pruning_steps", "2"] * ("gmp" in words)
    if "--resume_epoch 9" in command:
        small[small.index("--max_steps") :] = ["--num_epochs", "11"]
    options = [*words[words.index("train.py") + 1 :], *small, "--model_path", str(tmp_path)]
    if "launch" not in command:
        train.main(options)
        if "--dry_run" in words:
            assert "\nin all " in capfd.readouterr().out
            return
    else:  # the launcher's GPU options are taken out
        launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
        subprocess.run([*launch, ROOT / "train.py", *options], check=True)
    assert (tmp_path / "model-pruned.pdparams").is_file()


@pytest.mark.parametrize("document", [page for page in ENGLISH if blocks(page, "python")])
def test_documented_code(document, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(block for block in blocks(document, "python") if block != MY_TRAIN)
    exec(code, {})
    if document == "README.md":
        assert (tmp_path / "model-pruned.pdparams").is_file()


@pytest.fixture
def run_sh(tmp_path):
    """Calls run.sh with this interpreter in place of an environment of its own."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    checksum = subprocess.check_output(f"cksum <{ROOT}/pyproject.toml", shell=True, text=True)
    (venv / ".ready").write_text(f"cpu,test {checksum}")

    def call(*words, **environment):
        return subprocess.run(
            ["bash", ROOT / "run.sh", *map(str, words)],
            capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin", "VENV": str(venv), "EXTRAS": "cpu,test",
                 "PYTHON": sys.executable, **environment},
            cwd=environment.get("CWD", tmp_path),
        )  # fmt: skip

    return call


def test_run_sh_yolov3_threshold(run_sh, trained_voc, tmp_path):
    options = [*SMALL.split(), *SMALL_VOC.split(), "--data_dir", "VOCdevkit"]
    done = run_sh("yolov3_threshold", *options, "--model_path", tmp_path / "new",
                  CWD=str(trained_voc), LAUNCH_OPTIONS="--nproc_per_node 2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "new" / "train-state.json").read_text())
    assert state["step"] == 1
    assert state["ranks"] == 2
    assert state["options"]["step_epochs"] == [232, 261]
    assert state["options"]["l2_decay"] == 5e-4


@pytest.mark.parametrize("name", ["threshold", "ratio", "multi_gpu", "resume", "evaluate"])
def test_run_sh_command(name, run_sh, trained, tmp_path):
    small = SMALL.split()
    if name == "resume":
        small[small.index("--max_steps") :] = ["--num_epochs", "11", "--resume_epoch", "9"]
    options = [] if name == "evaluate" else [*small, "--model_path", tmp_path / "new"]
    done = run_sh(name, *options, CWD=str(trained), LAUNCH_OPTIONS="--nproc_per_node 2")
    assert done.returncode == 0, done.stderr
    if name == "evaluate":
        assert "samples 3" in done.stdout
    else:
        assert (tmp_path / "new" / "model-pruned.pdparams").is_file()


def test_run_sh_demo(run_sh, tmp_path):
    done = run_sh("demo", "--dense_epochs", 1, "--epochs", 1, "--scale", 0.1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert done.stdout.count("\nepoch 0 train loss ") == 4  # it shows that it trains
    methods = ["dense", "ratio 0.55", "threshold 0.08", "dense control"]
    assert [row[0] for row in rows] == methods
    assert [row[2] for row in rows[:2]] == ["0.00%", "55.00%"]


@pytest.mark.parametrize("name", ["demo", "demo_yolov3", "deploy_demo"])
def test_run_sh_beside_a_project_with_the_same_names(name, run_sh, tmp_path):
    for folder in ("training", "demos", "tasks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise SystemExit('not this one')\n")
    done = run_sh(name, "--help", CWD=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_run_sh_gpu_check_needs_a_gpu(run_sh):
    done = run_sh("gpu_check")
    if "GPU and CPU" in done.stdout:
        pytest.skip("there is a GPU")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("gpu_check.py: error: there is no GPU to check")


def test_run_sh_refusals(run_sh, tmp_path):
    for words, environment, message in (
        (["ratoi"], {}, "run.sh: error: unknown command ratoi; give one of the above"),
        (["multi_gpu"], {}, "run.sh: error: no GPU here; on CPUs: LAUNCH_OPTIONS="),
        (["test"], {"PYTHON": "python0"}, "run.sh: error: no python0; install Python 3.9 to 3.13"),
        (["resume"], {}, "run.sh: error: after which epoch?"),
        (["test"], {"VENV": "/proc/no"}, "run.sh: error: installing failed"),
    ):
        done = run_sh(*words, **environment)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(message)
        assert done.stderr.count("\n") <= 2 or words == ["ratoi"]
