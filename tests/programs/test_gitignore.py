"""What git leaves out: data, builds and what programs write, but no code."""

from __future__ import annotations

import subprocess

import pytest
from conftest import ROOT

if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
    pytest.skip("no checkout of git", allow_module_level=True)


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("results/new.py", False),
        ("results/new.jsonl", False),
        ("results/README.md", False),
        ("readers/data/new.py", False),
        ("runtimes/build/new.py", False),
        ("training/log/new.py", False),
        ("models/README.md", False),
        ("data/cifar-10-python.tar.gz", True),
        ("build/lib/unstructured_pruner.py", True),
        ("log/workerlog.0", True),
        ("train_mbv1_imagenet_threshold_001_log/workerlog.0", True),
        ("models/epoch-0/train-state.json", True),
        ("results/models/dense-seed0/train-state.json", True),
        ("results/fashion-mnist/train-images-idx3-ubyte.gz", True),
        ("my_results/runs.jsonl", True),
        (".venv-parity/bin/python", True),
    ],
)
def test_what_git_ignores(path, ignored):
    done = subprocess.run(["git", "-C", ROOT, "check-ignore", "--no-index", "-q", path])
    assert done.returncode == (0 if ignored else 1)
