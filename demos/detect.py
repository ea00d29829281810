"""Trains a small YOLOv3-MobileNetV1 on coloured shapes, prunes it, and compares.

    bash run.sh demo_yolov3            # or: python -m demos.detect [--seed 1]

A dense network is trained; from its weights start a run pruned to 56.5%, the sparsity that
PaddleSlim reports for VOC, and a dense control trained for just as long. evaluate.py measures each
saved checkpoint. The last line is JSON; mean average precisions are fractions.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from demos.classify import ROOT, measure, run
from training.command_line import Parser, one_line_errors, start


def parse(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=400, help="to train on (%(default)s)")
    parser.add_argument("--dense_epochs", type=int, default=20, help="of the dense network")
    parser.add_argument("--epochs", type=int, default=12, help="of each run from its weights")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "demo_yolov3")
    return parser.parse_args(argv)


if __name__ == "__main__":
    start(parse)

from benchmarks.report import markdown
from demos.shapes import make

RATIO = 0.565
COMMON = ["--data", "voc", "--scale", "0.125", "--image_size", "96", "--train_sizes", "96", "96"]
COMMON += ["--augmentation", "flip", "--num_workers", "0", "--lr", "0.02"]
COMMON += ["--lr_strategy", "cosine_decay", "--test_period", "1000"]


@one_line_errors
def main(argv=None) -> None:
    args = parse(argv)
    data = args.out / "shapes"
    make(data, args.pictures, args.pictures, 96, args.seed)
    common = [*COMMON, "--data_dir", str(data), "--seed", str(args.seed)]
    dense = args.out / "dense"
    first = ["--num_epochs", str(args.dense_epochs), "--warmup_steps", "300"]
    more = ["--num_epochs", str(args.epochs), "--warmup_steps", "50"]
    more += ["--pretrained_model", str(dense)]
    methods = {
        "dense": [*first, "--pruning_mode", "none"],
        "pruned": [*more, "--pruning_mode", "ratio", "--ratio", str(RATIO)],
        "control": [*more, "--pruning_mode", "none"],
    }
    rows, seconds = {}, 0.0
    for method, options in methods.items():
        folder = args.out / method
        started = time.perf_counter()
        run("train.py", *common, *options, "--model_path", str(folder))
        seconds += time.perf_counter() - started
        rows[method] = measure(folder, "--data_dir", str(data))
    print(
        f"\nYOLOv3-MobileNetV1 x0.125, {args.pictures} pictures of shapes, 96 px, seed {args.seed}"
    )
    print(f"{args.dense_epochs} epochs dense, then {args.epochs} of each method\n")
    shown = ("sparsity", "prunable_sparsity", "map_11point", "map_area")
    cells = [[method, *(f"{row[name]:.2%}" for name in shown)] for method, row in rows.items()]
    print(markdown(["method", "sparsity, all", "prunable", "mAP, 11-point", "mAP, area"], cells))
    result = {f"map_{method}": row["map_11point"] for method, row in rows.items()}
    result["prunable_sparsity"] = rows["pruned"]["prunable_sparsity"]
    print(json.dumps({**result, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    sys.exit(main())
