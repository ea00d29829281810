"""The networks that are timed: made, pruned, and brought into a form for each runtime."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import paddle

import export
import runtimes
from sparse_runtime import model_file
from sparse_runtime.model_file import Model
from tasks import TASKS
from training import checkpoint, folders, train_state
from training.options import DETECTORS
from training.trained import complete
from unstructured_pruner import UnstructuredPruner, prunable_parameters, sparsity
from unstructured_pruning.parameters import default_skip_params

OWN_SIZES = {"inception_v3": 299}  # sides of pictures; of other classifiers 224, of YOLOv3 416


def options(args: argparse.Namespace, name: str | None) -> argparse.Namespace:
    """Those of the tasks.

    Args:
        args: has pruned_model, scale and image_size, None where they were not given.
        name: None is the checkpoint's own network.

    Raises:
        ValueError: there is no such network, or the checkpoint is of another one.
    """
    found = argparse.Namespace(
        model=name, scale=args.scale, image_size=args.image_size or OWN_SIZES.get(name),
        data=None, data_dir=None, num_classes=None, weights=None,
    )  # fmt: skip
    saved = None
    if args.pruned_model:
        found.weights = folders.find_weights(args.pruned_model)
        saved = train_state.read(found.weights.parent)
    if not saved:
        found.data = "voc" if name in DETECTORS else "imagenet"
    complete(found, saved)
    found.image_size = TASKS[found.data].input_shape(found)[1]
    return found


def kept_dense(network: paddle.nn.Layer) -> set[str]:
    """The names of what is not pruned: of the first and of depthwise convolutions, and defaults."""
    kernels = {name: p.shape for name, p in network.named_parameters() if p.ndim == 4}
    depthwise = {name for name, shape in kernels.items() if shape[1] == 1}
    return {*default_skip_params(network), next(iter(kernels)), *depthwise}


def random_network(found: argparse.Namespace, ratio: float) -> paddle.nn.Layer:
    """Random weights, pruned uniformly; its activations are as large as a trained network's."""
    task = TASKS[found.data]
    paddle.seed(0)
    network = task.make_model(found)
    if ratio:
        UnstructuredPruner(
            network, "ratio", ratio=ratio, distribution="uniform", skip_params_func=kept_dense
        ).step()
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._momentum = 0.0  # its statistics are those of the last batch
    network.train()
    with paddle.no_grad():
        network(paddle.randn([16, *task.input_shape(found)]))
    network.eval()
    return network


def trained_network(found: argparse.Namespace) -> paddle.nn.Layer:
    """That of the checkpoint."""
    network = TASKS[found.data].make_model(found)
    checkpoint.load_weights(network, found.weights, train_state.read(found.weights.parent))
    network.eval()
    return network


def write_all(folder: Path, found: argparse.Namespace, ratios: list[float], batch: int) -> dict:
    """A folder for the dense network, one for each pruned one, and the pictures.

    Returns:
        their Models by sparsity; None of what the sparse runtime does not take.
    """
    shape = TASKS[found.data].input_shape(found)
    images = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    np.save(folder / "images.npy", images)
    made = {0.0: random_network(found, 0)}
    if found.weights:
        network = trained_network(found)
        made[round(sparsity(prunable_parameters(network)), 4)] = network
    else:
        made.update((ratio, random_network(found, ratio)) for ratio in ratios)
    return {ratio: write(folder, ratio, made[ratio], images) for ratio in made}


def write(folder: Path, ratio: float, network: paddle.nn.Layer, images: np.ndarray) -> Model | None:
    """A file for each runtime that it is timed with, and what it has to compute."""
    folder /= f"{ratio:g}"
    folder.mkdir()
    batch, *shape = images.shape
    np.savez(folder / "outputs.npz", *export.outputs(network, paddle.to_tensor(images)))
    export.save_onnx(network, shape, folder, batch)
    model = None
    try:
        export.save_sparse(network, shape, folder)
        model = model_file.read(folder / runtimes.SPARSE)
    except ValueError as error:
        print(f"the sparse runtime is left out: {error}", file=sys.stderr)
    if ratio == 0:
        export.save_paddle(network, shape, folder, batch)  # the last one: it changes the network
    return model
