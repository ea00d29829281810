"""Measures a pruned checkpoint: accuracy (of a detector: mAP) and sparsity. Downloads only data.

    python evaluate.py --pruned_model models/ --data imagenet
    python evaluate.py --pruned_model models/ --per_layer
    python evaluate.py --pruned_model models/epoch-9 --json

Model, width and classes are those in the train-state.json beside the weights, where there is one;
so are data set and image size where they are not given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import checkpoint
from program import Loader, evaluate, listed, number, one_line_errors, set_device
from sampler import EpochBatchSampler
from tasks import TASKS, add_common_options, parse
from unstructured_pruner import UnstructuredPruner, prunable_parameters, sparsity, sparsity_table

TRAINED = ("model", "scale", "num_classes")  # what train-state.json knows better than the options


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
    return parser


@one_line_errors
def main(argv=None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    set_device(args.use_gpu)
    weights = checkpoint.find_weights(args.pruned_model)
    trained = checkpoint.read_state(weights.parent).get("options", {})
    data = args.data or trained.get("data", "cifar10")
    if data not in TASKS:
        raise ValueError(f"there is no data set {data!r}; give --data")
    task = TASKS[data]
    if args.image_size and "image_size" not in task.OWN_OPTIONS:
        raise ValueError("--image_size needs --data voc")
    if args.show:
        if not hasattr(task.Metric, "show"):
            raise ValueError("--show draws what a detector finds: it needs --data voc")
        try:
            os.makedirs(args.show, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot draw into --show {args.show}: {error.strerror}") from None
    known = {key: trained[key] for key in TRAINED if key in trained}
    if args.image_size is None and trained.get("image_size"):
        known["image_size"] = trained["image_size"]
    args = parse(parser, argv, data)
    options = argparse.Namespace(**{**vars(args), **known}, seed=0)
    options.num_classes = options.num_classes or task.num_classes(options)
    model = task.make_model(options)
    classes = task.class_names(options)
    if trained.get("classes", classes) != classes:
        raise ValueError(f"trained on the classes {trained['classes']}, the data set has {classes}")
    checkpoint.load_weights(model, weights)
    dataset = task.make_dataset(options, "val")
    batches = EpochBatchSampler(len(dataset), args.batch_size, shuffle=False, drop_last=False)
    metric = task.Metric(dataset)
    started = time.perf_counter()
    tested = evaluate(model, Loader(dataset, batches, args.num_workers), metric)
    seconds = time.perf_counter() - started
    prunable = prunable_parameters(model)
    results = {
        **{key: tested[key] for key in task.MEASURED},
        "sparsity": UnstructuredPruner.total_sparse(model),
        "prunable_sparsity": sparsity(prunable),
        "samples": tested["samples"],
    }
    if not args.json and hasattr(metric, "table"):
        print(metric.table())
    if args.per_layer:
        print(sparsity_table(model, prunable))
    if args.json:
        print(json.dumps(results))
    else:
        print(
            f"{listed(results, task.MEASURED)}"
            f"sparsity {results['sparsity']:.4f} prunable {results['prunable_sparsity']:.4f} "
            f"samples {results['samples']} images/s {results['samples'] / seconds:.1f}"
        )
    if args.show:
        metric.show(args.show)


if __name__ == "__main__":
    sys.exit(main())
