"""Measures a pruned checkpoint: accuracy (of a detector: mAP) and sparsity. Downloads only data.

    python evaluate.py --pruned_model models/ --data imagenet
    python evaluate.py --pruned_model models/ --per_layer --per_class
    python evaluate.py --pruned_model models/epoch-9 --json
    python evaluate.py --pruned_model exported --runtime sparse --threads 2   # of export.py
    python evaluate.py --pruned_model models/ --predict a.jpg b.png   # what is in them

Model, width and classes are those in the train-state.json beside the weights, where there is one;
so are data set and image size where they are not given.
"""

from __future__ import annotations

from functools import partial

from training.command_line import last_words, one_line_errors, start
from training.options import parse_evaluation

parse = partial(parse_evaluation, __doc__)
if __name__ == "__main__":
    ARGS = start(parse)

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import runtimes
from readers.loader import Loader
from readers.sampler import EpochBatchSampler
from tasks.lines import listed, shortened, table, warn
from tasks.measure import class_names, evaluate
from tasks.predict import file_name, predict, read_picture, text
from training import checkpoint, convolutions, folders, train_state
from training.process import set_device
from training.train_state import Saved
from training.trained import classes_of, complete
from unstructured_pruner import UnstructuredPruner, prunable_parameters, sparsity, sparsity_table


def sparsity_by_layer(prunable: dict) -> list[dict]:
    """The rows of sparsity_table() for JSON."""
    return [
        {
            "name": name,
            "shape": list(weight.shape),
            "weights": math.prod(weight.shape),
            "sparsity": sparsity({name: weight}),
        }
        for name, weight in prunable.items()
    ]


def check_classes(names: list[str] | None, saved: Saved | None) -> None:
    """Whether labels mean the same as in the training.

    Raises:
        ValueError: they do not.
    """
    trained_on = classes_of(saved)
    if (trained_on is None) != (names is None):
        if saved and "classes" in saved.options:
            here, there = ("numbers", "names")[:: 1 if names is None else -1]
            warn(f"classes are {here} here, in training {there}: they may not mean the same")
    elif trained_on != names:
        raise ValueError(f"trained on {shortened(trained_on)}, the data set has {shortened(names)}")


def check_show(folder: str, task) -> None:
    """Raises ValueError: nothing can be drawn, or not into this folder."""
    if not hasattr(task.Metric, "show"):
        raise ValueError("--show draws what a detector finds: it needs --data voc")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot draw into --show {folder}: {error.strerror}") from None


def show_predictions(args, task, model) -> None:
    """Prints what is in the pictures of --predict; those that are none are left out.

    Raises:
        SystemExit: at the end, after a line on stderr for each that was left out.
    """
    model.eval()
    found, left_out = [], 0
    for number, path in enumerate(args.predict, 1):
        try:
            pixels, images = read_picture(task, args, path)
        except (FileNotFoundError, ValueError) as error:
            last_words("evaluate.py", f"error: {path}: {error}")
            left_out += 1
            continue
        predictions = predict(task, args, model, pixels, images)
        found.append({"picture": path, "predictions": predictions})
        if args.show:
            task.draw(pixels, predictions, os.path.join(args.show, file_name(number, path)))
        if not args.json:
            print(text(path, predictions), flush=True)
    if args.json:
        print(json.dumps(found))
    if left_out:
        sys.exit(2)


@one_line_errors
def main(argv=None) -> None:
    args = argv if isinstance(argv, argparse.Namespace) else parse(argv)
    set_device(args.use_gpu)
    path = Path(args.pruned_model)
    weights = None if args.runtime else folders.find_weights(path)
    saved = train_state.read(path if args.runtime else weights.parent)
    task = complete(args, saved)
    trained_size = saved.options.get("image_size") if saved else None
    if args.runtime and trained_size not in (None, args.image_size):
        raise ValueError(
            f"--image_size {args.image_size}: {path} was exported for pictures of "
            f"{trained_size}x{trained_size}; leave it out"
        )
    if args.show:
        check_show(args.show, task)
    if args.runtime:
        batch_size = 1 if args.predict else args.batch_size
        model = runtimes.load(args.runtime, path, batch_size, args.threads or 1)
    else:
        model = task.make_model(args)
        checkpoint.load_weights(model, weights, saved)
        if saved and saved.options.get("fast_convolutions"):  # as in the tests while training
            convolutions.use_fast(model)
    if args.predict:
        show_predictions(args, task, model)
    else:
        measure(args, task, model, saved)


def measure(args, task, model, saved: Saved | None) -> None:
    """Prints what the network reaches on the test set."""
    dataset = task.make_dataset(args, "val")
    check_classes(class_names(dataset), saved)
    batches = EpochBatchSampler(len(dataset), args.batch_size, shuffle=False, drop_last=False)
    metric = task.Metric(dataset)
    started = time.perf_counter()
    tested = evaluate(model, Loader(dataset, batches, args.num_workers), metric)
    seconds = time.perf_counter() - started
    results = {key: tested[key] for key in task.MEASURED}
    shown = listed(results, task.MEASURED)
    if not args.runtime:  # what is exported has its own form
        prunable = prunable_parameters(model)
        results["sparsity"] = UnstructuredPruner.total_sparse(model)
        results["prunable_sparsity"] = sparsity(prunable)
        shown += "sparsity {sparsity:.4f} prunable {prunable_sparsity:.4f} ".format(**results)
    results["samples"] = tested["samples"]
    results["images_per_sec"] = round(tested["samples"] / seconds, 1)
    if args.json:
        if args.per_layer:
            results["layers"] = sparsity_by_layer(prunable)
        if args.per_class:
            results["classes"] = metric.per_class()
        print(json.dumps(results))
    else:
        if args.per_class or args.data == "voc":
            print(table(metric.per_class()))
        if args.per_layer:
            print(sparsity_table(model, prunable))
        print("{}samples {samples} images/s {images_per_sec}".format(shown, **results))
    if args.show:
        metric.show(args.show)


if __name__ == "__main__":
    sys.exit(main(ARGS))
