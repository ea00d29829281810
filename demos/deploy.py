"""Exports two pruned digits checkpoints in every format: size, accuracy and latency of each.

    bash run.sh deploy_demo     # or: python -m demos.deploy [--pruned_model models/...]

MobileNetV1 of a quarter's width is the demo's (bash run.sh demo) at 55%, ResNet18 is trained here
to 90%. What is missing is trained first, in about a minute each. The latency is the median over one
picture at a time on one thread, the forms in turns.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demos import classify
from training.command_line import Parser, one_line_errors, start

MODELS = classify.ROOT / "models"
MOBILENET, RESNET = MODELS / "demo" / "ratio-0.55", MODELS / "demo" / "resnet18"
RESNET_OPTIONS = ["--model", "resnet18", "--ratio", "0.9", "--num_epochs", "3", "--lr", "0.02"]


def parse(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--pruned_model", type=Path, metavar="PATH", help="of digits, in place of these two")
    add("--out", type=Path, default=MODELS / "deploy_demo", help="(default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    start(parse)

import paddle

import runtimes
from benchmarks.report import markdown
from runtimes import cost
from training import checkpoint, folders, train_state
from training.options import parse_evaluation
from training.trained import complete


def load(pruned_model: Path):
    """The network, its name and a picture for it."""
    weights = folders.find_weights(pruned_model)
    args = parse_evaluation("", [])  # what is not given the checkpoint decides
    task = complete(args, train_state.read(weights.parent))
    model = task.make_model(args)
    checkpoint.load_weights(model, weights)
    model.eval()
    return model, args.model, paddle.randn([1, *task.input_shape(args)])


def size(folder: Path, form: str) -> int:
    if form == "checkpoint":
        return folders.find_weights(folder).stat().st_size
    return sum((folder / name).stat().st_size for name in runtimes.files(form, folder))


def rows(pruned_model: Path, exports: Path) -> list[list[str]]:
    """Of the table: the checkpoint, and each form that it is exported in."""
    for name in runtimes.NAMES:
        options = ["--pruned_model", pruned_model, "--format", name, "--out", exports]
        classify.run("export.py", *options)
    results = {"checkpoint": classify.measure(pruned_model)}
    for name in runtimes.NAMES:
        results[name] = classify.measure(exports, "--runtime", name)
    model, network, picture = load(pruned_model)
    forms = {"checkpoint": model}
    forms.update({name: runtimes.load(name, exports, 1, 1) for name in runtimes.NAMES})
    seconds = cost.medians(forms, picture, seconds=2)
    zeros = results["checkpoint"]["prunable_sparsity"]
    found = []
    for form, result in results.items():
        kb = f"{size(pruned_model if form == 'checkpoint' else exports, form) / 1000:,.0f}"
        accuracy = f"{result['top1']:.2%}", f"{result['top5']:.2%}"
        ms = f"{1000 * seconds[form]:.3f}"
        found.append([f"{network}, {zeros:.0%}", form, kb, *accuracy, ms])
    return found


@one_line_errors
def main(argv=None) -> None:
    args = parse(argv)
    if args.pruned_model is None:
        if not MOBILENET.exists():
            classify.main([])
        if not RESNET.exists():
            classify.run("train.py", *classify.COMMON, *RESNET_OPTIONS, "--model_path", RESNET)
    checkpoints = [args.pruned_model] if args.pruned_model else [MOBILENET, RESNET]
    table = [row for path in checkpoints for row in rows(path, args.out / path.name)]
    head = ["network", "form", "size, KB", "top-1", "top-5", "ms a picture"]
    print("\n" + markdown(head, table))


if __name__ == "__main__":
    sys.exit(main())
