"""pip install . gives the pruner in any folder and nothing else; run.sh, what the programs need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from conftest import ROOT

PROGRAM = """
import sys
for name in ("cv2", "simplejpeg", "sklearn", "tabulate", "psutil"):
    sys.modules[name] = None  # as if it were not installed
from unstructured_pruner import GMPUnstructuredPruner, UnstructuredPruner
import paddle, unstructured_pruner, unstructured_pruning.masking
model = paddle.nn.Sequential(paddle.nn.Linear(20, 10), paddle.nn.Linear(10, 10))
UnstructuredPruner(model, mode="ratio", ratio=0.5).step()
print([int((layer.weight == 0).sum()) for layer in model], unstructured_pruner.__file__)
configs = {"stable_iterations": 0, "pruning_iterations": 1, "tunning_iterations": 0,
           "pruning_steps": 1, "initial_ratio": 0.5}
pruner = GMPUnstructuredPruner(model, ratio=0.9, configs=configs)
pruner.step(), pruner.step()
print(sum(int((layer.weight == 0).sum()) for layer in model), unstructured_pruning.__file__)
"""


def copy_sources(to):
    """Everything that a checkout has to install, without what lies beside it (data, builds)."""
    to.mkdir()
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".md", ".toml"):
            shutil.copy(path, to)
        elif path.name == "tests" or (path / "__init__.py").exists():
            shutil.copytree(path, to / path.name, ignore=shutil.ignore_patterns("__pycache__"))


def test_an_installed_project_is_the_pruner_alone(tmp_path):
    if tuple(map(int, metadata.version("setuptools").split(".")[:2])) < (70, 1):
        pytest.skip("this setuptools needs the package wheel")
    copy_sources(tmp_path / "source")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
         "--no-build-isolation", "--no-compile", "--target", site, tmp_path / "source"],
        check=True,
    )  # fmt: skip
    [info] = site.glob("*.dist-info")
    assert {path.name for path in site.iterdir()} == {
        "unstructured_pruner.py", "unstructured_pruning", info.name,
    }  # fmt: skip
    names = {path.name for path in (ROOT / "unstructured_pruning").glob("*.py")}
    assert {path.name for path in (site / "unstructured_pruning").iterdir()} == names
    requires = metadata.PathDistribution(info).requires
    assert [r.split(">")[0].split("<")[0] for r in requires if "extra ==" not in r] == ["numpy"]

    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=elsewhere, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    counts, _, path = first.rpartition(" ")
    assert sum(map(int, counts.strip("[]").split(","))) == 150  # of 300
    assert path == str(site / "unstructured_pruner.py")
    assert second == f"270 {site / 'unstructured_pruning' / '__init__.py'}"


@pytest.mark.parametrize("extras", ["cpu,test", "parity,test"])
def test_run_sh_installs_what_the_project_needs_and_not_the_project(extras, tmp_path):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
        f'echo "$@" >>{calls}\n'
    )
    python.chmod(0o755)
    name = "parity" if "parity" in extras else "test"
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "VENV": str(tmp_path / "venv")}
    if name == "test":
        environment["EXTRAS"] = extras
    for _ in range(2):  # the second time everything is there
        subprocess.run(["bash", ROOT / "run.sh", name], env=environment, check=True)
    installing = [line for line in calls.read_text().splitlines() if " pip " in line]
    assert [line.split(" pip ")[1].split()[0] for line in installing] == ["install", "uninstall"]
    assert installing[0].endswith(f"{ROOT}[{extras},programs]")
    assert installing[1].endswith(" -y paddle-unstructured-pruning")
