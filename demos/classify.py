"""Trains MobileNetV1 (width 0.25) on scikit-learn's digits, prunes it in two ways, and compares.

    bash run.sh demo            # or: python -m demos.classify [--seed 1]

A dense network is trained; from its weights start a run pruned by ratio, one pruned by threshold,
and a dense control trained for just as long. evaluate.py measures each saved checkpoint.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import fast_products, markdown
from training.command_line import Parser, one_line_errors

ROOT = Path(__file__).resolve().parent.parent

COMMON = ["--data", "digits", "--num_workers", "0", "--lr_strategy", "cosine_decay"]
COMMON += ["--batch_size", "32", "--lr", "0.05"]
THRESHOLD = 0.08  # prunes about half of this small network; 0.01 would prune 7% of it
METHODS = {
    "ratio 0.55": ["--pruning_mode", "ratio", "--ratio", "0.55"],
    f"threshold {THRESHOLD}": ["--pruning_mode", "threshold", "--threshold", str(THRESHOLD)],
    "dense control": ["--pruning_mode", "none"],
}


def run(program: str, *options: str, shown: bool = True) -> str | None:
    """Runs a program of this project; returns what it printed, where that is not to be shown."""
    command = [sys.executable, str(ROOT / program), *map(str, options)]
    print("$ python", program, *options, flush=True)
    environment = {**fast_products(), **os.environ}
    out = None if shown else subprocess.PIPE
    child = subprocess.Popen(command, stdout=out, text=True, env=environment)
    while True:
        try:
            out = child.communicate()[0]
            break
        except KeyboardInterrupt:  # which the program got, too: it saves, and ends by itself
            continue
    if child.returncode:
        sys.exit(child.returncode)  # its own last line on stderr says why
    return out


def measure(folder: Path, *options: str) -> dict:
    """What evaluate.py says."""
    options = ["--pruned_model", folder, *options, "--num_workers", "0", "--json"]
    return json.loads(run("evaluate.py", *options, shown=False))


def train_and_measure(method: str, folder: Path, *options: str) -> dict:
    started = time.perf_counter()
    run("train.py", *COMMON, "--model_path", str(folder), *options)
    seconds = time.perf_counter() - started
    result = measure(folder)
    weights = (folder / "model-pruned.pdparams").read_bytes()
    gzipped = len(gzip.compress(weights, 6))
    return {"method": method, **result, "bytes": len(weights), "gzip": gzipped, "seconds": seconds}


def table(rows: list[dict]) -> str:
    head = ["method", "sparsity, all", "prunable", "top-1", "top-5"]
    shares = ("sparsity", "prunable_sparsity", "top1", "top5")
    cells = [
        [row["method"], *(f"{row[name]:.2%}" for name in shares), f"{row['bytes'] / 1000:.0f}",
         f"{row['gzip'] / 1000:.0f}", f"{row['seconds']:.0f}"]
        for row in rows
    ]  # fmt: skip
    return markdown([*head, "size, KB", "gzipped, KB", "seconds"], cells)


@one_line_errors
def main(argv=None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense_epochs", type=int, default=7, help="of the dense network")
    parser.add_argument("--epochs", type=int, default=6, help="of each run from its weights")
    parser.add_argument("--scale", default="0.25", help="width of the network")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "demo")
    args = parser.parse_args(argv)
    common = ["--seed", str(args.seed), "--scale", args.scale, "--num_epochs"]
    print("four trainings, each tested: about a minute on two CPU cores", flush=True)
    dense = args.out / "dense"
    rows = [
        train_and_measure("dense", dense, *common, str(args.dense_epochs), "--pruning_mode", "none")
    ]
    for method, options in METHODS.items():
        folder = args.out / method.replace(" ", "-")
        more = [*common, str(args.epochs), "--pretrained_model", str(dense), *options]
        rows.append(train_and_measure(method, folder, *more))
    print(f"\nMobileNetV1 x{args.scale} on digits, seed {args.seed}")
    print(f"{args.dense_epochs} epochs dense, then {args.epochs} of each method\n")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
