"""Exports a pruned digits checkpoint in every format: size, accuracy and latency of each.

    bash run.sh deploy_demo     # or: python -m demos.deploy [--pruned_model models/...]

Without a checkpoint of the demo (bash run.sh demo) that is trained first, 3 minutes. The latency is
the median over one picture at a time on one thread, the forms in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from demos import classify
from training.command_line import Parser, number, one_line_errors, start

DEMO = classify.ROOT / "models" / "demo" / "ratio-0.55"


def parse(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--pruned_model", type=Path, default=DEMO, help="(default: the demo's at 55%%)")
    add("--out", type=Path, default=classify.ROOT / "models" / "deploy_demo")
    add("--rounds", type=number(int, 1), default=200, help="(default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    start(parse)

import paddle

import runtimes
from benchmarks.report import markdown
from training import checkpoint, folders, train_state
from training.options import parse_export
from training.trained import complete


def latencies(checkpoint_path: Path, exports: Path, rounds: int) -> dict[str, float]:
    """Median seconds of one picture, by form."""
    weights = folders.find_weights(checkpoint_path)
    args = parse_export("", ["--format", "onnx", "--out", str(exports)])
    task = complete(args, train_state.read(weights.parent))
    model = task.make_model(args)
    checkpoint.load_weights(model, weights)
    model.eval()
    networks = {"checkpoint": model}
    networks.update({name: runtimes.load(name, exports, 1, 1) for name in runtimes.NAMES})
    picture = paddle.randn([1, *task.input_shape(args)])
    seconds = {name: [] for name in networks}
    with paddle.no_grad():
        for _ in range(rounds):
            for name, network in networks.items():
                network(picture)  # warms the caches up, which hold the other networks
                started = time.perf_counter()
                network(picture)
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def size(folder: Path, form: str) -> int:
    if form == "checkpoint":
        return folders.find_weights(folder).stat().st_size
    return sum((folder / name).stat().st_size for name in runtimes.files(form, folder))


@one_line_errors
def main(argv=None) -> None:
    args = parse(argv)
    if args.pruned_model == DEMO and not DEMO.exists():
        classify.main([])
    for name in runtimes.NAMES:
        options = ["--pruned_model", args.pruned_model, "--format", name, "--out", args.out]
        classify.run("export.py", *options)
    results = {"checkpoint": classify.measure(args.pruned_model)}
    for name in runtimes.NAMES:
        results[name] = classify.measure(args.out, "--runtime", name)
    seconds = latencies(args.pruned_model, args.out, args.rounds)
    rows = []
    for form, result in results.items():
        folder = args.pruned_model if form == "checkpoint" else args.out
        accuracy = f"{result['top1']:.2%}", f"{result['top5']:.2%}"
        kb = f"{size(folder, form) / 1000:.0f}"
        rows.append([form, kb, *accuracy, f"{1000 * seconds[form]:.3f}"])
    print("\n" + markdown(["form", "size, KB", "top-1", "top-5", "ms a picture"], rows))


if __name__ == "__main__":
    sys.exit(main())
