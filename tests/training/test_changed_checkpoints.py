"""Real checkpoints with wrong bytes: refused by the loader that reads them.

Checksums are no defence, as who writes the file writes them too: here they are right or absent.
"""

from __future__ import annotations

import json
import types

import paddle
import pytest
from hostile import changed, changes, loaded_or_refused, properties
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from training import checkpoint, train_state
from training.folders import MASKS, OPTIMIZER, STATE, WEIGHTS
from unstructured_pruner import UnstructuredPruner


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small training, its checkpoint as a dict of files, and a folder to put it into."""
    model = paddle.nn.Sequential(paddle.nn.Conv2D(1, 2, 3), paddle.nn.BatchNorm2D(2))
    opt = paddle.optimizer.Momentum(0.1, 0.9, parameters=model.parameters())
    pruner = UnstructuredPruner(model, "ratio", ratio=0.5, skip_params_func=lambda model: [])
    model(paddle.ones([1, 1, 5, 5])).sum().backward()
    opt.step()
    pruner.step()
    folder = tmp_path_factory.mktemp("tiny")
    args = types.SimpleNamespace(model_path=folder, format="pdparams", amp=False, keep=None)
    options = {"pruning_mode": "ratio"}
    saved = train_state.Saved(folder / "epoch-0", options, epoch=0, step=1, finished=True)
    run = types.SimpleNamespace(args=args, model=model, opt=opt, pruner=pruner, average=None,
                                statistics=None, state=lambda finished: saved)  # fmt: skip
    checkpoint.save(run, finished=True)
    save_file({k: v.numpy() for k, v in model.state_dict().items()}, folder / "a.safetensors")
    files = {path.name: path.read_bytes() for path in (folder / "epoch-0").iterdir()}
    files["a.safetensors"] = (folder / "a.safetensors").read_bytes()
    return run, files, tmp_path_factory.mktemp("changed")


@properties
@given(changes)
def test_changed_weights(tiny, changes):
    run, files, folder = tiny
    shapes = [p.shape for p in run.model.parameters()]
    for path in (folder / WEIGHTS, folder / "a.safetensors"):
        path.write_bytes(changed(files[path.name], changes))
        loaded_or_refused(path, lambda path=path: checkpoint.load_weights(run.model, path))
        assert [p.shape for p in run.model.parameters()] == shapes


@properties
@given(changes)
def test_a_changed_optimizer(tiny, changes):
    _, files, folder = tiny
    path = folder / OPTIMIZER
    path.write_bytes(changed(files[OPTIMIZER], changes))
    state = loaded_or_refused(path, lambda: checkpoint.read_arrays(path))
    assert state is None or all(type(name) is str for name in state)


@properties
@given(changes)
def test_changed_masks(tiny, changes):
    run, files, folder = tiny
    path = folder / MASKS
    path.write_bytes(changed(files[MASKS], changes))
    masks = loaded_or_refused(path, lambda: checkpoint.read_masks(path, run.pruner.masks))
    assert masks is None or masks.keys() == run.pruner.masks.keys()


@properties
@given(changes, st.booleans())
def test_a_changed_state(tiny, changes, sign):
    _, files, folder = tiny
    path = folder / STATE
    content = changed(files[STATE], changes)
    try:
        state = json.loads(content)
        state["checksums"] = {**state["checksums"], STATE: train_state._own_checksum(state)}
        content = json.dumps(state).encode() if sign else content
    except (ValueError, TypeError, KeyError):  # no JSON, or not what is signed
        pass
    path.write_bytes(content)
    state = loaded_or_refused(path, lambda: train_state.read(folder))
    assert state is None or (state.epoch >= 0 and state.step >= 0)
