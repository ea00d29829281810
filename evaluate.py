"""Measures a pruned checkpoint: accuracy (of a detector: mAP) and sparsity. Downloads only data.

    python evaluate.py --pruned_model models/ --data imagenet
    python evaluate.py --pruned_model models/ --per_layer
    python evaluate.py --pruned_model models/epoch-9 --json
    python evaluate.py --pruned_model exported --runtime sparse --threads 2   # of export.py

Model, width and classes are those in the train-state.json beside the weights, where there is one;
so are data set and image size where they are not given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import checkpoint
import runtimes
from program import (
    Loader,
    class_names,
    evaluate,
    listed,
    number,
    one_line_errors,
    set_device,
    shortened,
)
from sampler import EpochBatchSampler
from tasks import add_common_options, trained_options
from unstructured_pruner import UnstructuredPruner, prunable_parameters, sparsity, sparsity_table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--pruned_model",
        default="models",
        metavar="PATH",
        help="folder, prefix or .pdparams file (default: %(default)s)",
    )
    add_common_options(parser)
    add("--batch_size", type=number(int, 1), default=64, help="(default: %(default)s)")
    add("--log_period", type=number(int, 1), default=100, help=argparse.SUPPRESS)  # upstream's
    add("--show", metavar="FOLDER", help="voc: draw what is found in the first 100 pictures")
    add("--json", action="store_true", help="print the results as one line of JSON")
    add("--per_layer", action="store_true", help="print a table of the layers' sparsity")
    add("--runtime", choices=runtimes.NAMES, help="what runs a folder that export.py wrote")
    add("--threads", type=number(int, 1), help="of --runtime (default: 1)")
    return parser


def check_classes(names: list[str] | None, trained: dict) -> None:
    """Whether labels mean the same as in the training.

    Raises:
        ValueError: they do not.
    """
    if names is None or "classes" not in trained:
        return
    if trained["classes"] is None:
        print("the labels are the folders in sorted order: in training a list gave them",
              file=sys.stderr)  # fmt: skip
    elif trained["classes"] != names:
        raise ValueError(
            f"trained on the classes {shortened(trained['classes'])}, the data set has "
            f"{shortened(names)}"
        )


@one_line_errors
def main(argv=None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.per_layer and args.runtime:
        raise ValueError("--per_layer is of a checkpoint's weights: leave --runtime out")
    if args.threads and not args.runtime:
        raise ValueError("--threads is of --runtime; OMP_NUM_THREADS sets Paddle's own")
    set_device(args.use_gpu)
    path = Path(args.pruned_model)
    weights = None if args.runtime else checkpoint.find_weights(path)
    task, options, trained = trained_options(parser, argv, path if args.runtime else weights.parent)
    if args.show:
        if not hasattr(task.Metric, "show"):
            raise ValueError("--show draws what a detector finds: it needs --data voc")
        try:
            os.makedirs(args.show, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot draw into --show {args.show}: {error.strerror}") from None
    if args.runtime:
        model = runtimes.load(args.runtime, path, args.batch_size, args.threads or 1)
    else:
        model = task.make_model(options)
        checkpoint.load_weights(model, weights)
    dataset = task.make_dataset(options, "val")
    check_classes(class_names(dataset), trained)
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
    if not args.json and hasattr(metric, "table"):
        print(metric.table())
    if args.per_layer:
        print(sparsity_table(model, prunable))
    images_a_second = results["samples"] / seconds
    if args.json:
        rate = {"images_per_second": round(images_a_second, 1)} if args.runtime else {}
        print(json.dumps({**results, **rate}))
    else:
        print(f"{shown}samples {results['samples']} images/s {images_a_second:.1f}")
    if args.show:
        metric.show(args.show)


if __name__ == "__main__":
    sys.exit(main())
