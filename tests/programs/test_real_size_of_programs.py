"""The programs with large networks, from the first step to the exports."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, long

from training import checkpoint, folders, train_state
from training.folders import MASKS


def run(program: str, *options) -> str:
    """In a process of its own, so that what it took is given back."""
    done = subprocess.run(
        [sys.executable, ROOT / program, *map(str, options)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@long
@pytest.mark.parametrize(
    ("name", "form", "parameters", "formats"),
    [("vgg16", "pdparams", 138_357_544, ["onnx"]),  # the largest tensors
     ("resnet152", "safetensors", 60_344_232, ["paddle", "onnx"]),  # the most of them
     ("mobilenet_v1", "pdparams", 4_253_864, ["sparse"])],
)  # fmt: skip
def test_a_network_in_full(name, form, parameters, formats, imagenet_dir, large_tmp_path):
    if "onnx" in formats or "sparse" in formats:
        pytest.importorskip("paddle2onnx")
    models, exported = large_tmp_path / "models", large_tmp_path / "exported"
    data = ["--data_dir", imagenet_dir, "--num_workers", 0]
    options = ["--data", "imagenet", *data, "--model", name, "--use_pretrained", "false",
               "--use_gpu", "false", "--batch_size", 2, "--lr", 1e-5, "--format", form,
               "--model_path", models]  # fmt: skip
    run("train.py", *options, "--max_steps", 1)
    run("train.py", *options, "--max_steps", 2, "--resume_epoch", "latest")
    trained = run("evaluate.py", "--pruned_model", models, *data, "--use_gpu", "false", "--json")
    trained = json.loads(trained)
    assert trained["prunable_sparsity"] == pytest.approx(0.55, abs=1e-6)
    folder = models / "epoch-0"
    arrays = checkpoint.read_arrays(folders.find_weights(folder))
    assert sum(array.size for array in arrays.values()) == parameters
    with np.load(folder / MASKS) as masks:
        kept = {key: int(np.unpackbits(masks[key]).sum()) for key in masks.files}
    assert kept == {key: np.count_nonzero(arrays[key]) for key in kept}
    assert train_state.read(folder).step == 2
    for each in formats:
        run("export.py", "--pruned_model", models, "--format", each, "--out", exported)
        measured = run(
            "evaluate.py", "--pruned_model", exported, "--runtime", each, *data, "--json"
        )
        measured = json.loads(measured)
        assert measured["loss"] == pytest.approx(trained["loss"], rel=1e-3)
        assert measured["samples"] == 3
