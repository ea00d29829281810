"""How much pruning each layer bears before any training, and a --distribution for train.py from it.

    python -m results.sensitivity --pretrained_model models --ratio 0.75
    python -m results.sensitivity --pretrained_model models --max_drop 0.02 --out sensitivity-2

Each layer is pruned alone at each of --ratios, tested, and restored. The tests are on training
pictures, prepared as in a test: what is chosen by a test picture makes its result too good. Before
each one batch norm's statistics are measured on these pictures, as a training would soon mend them;
without that a network pruned in one go tells nothing of the one that is trained (Li et al., 2020,
EagleEye). Each is a line in OUT/sensitivity.jsonl; after an interruption the same command goes on.

--max_drop takes each layer at the largest ratio at which it costs no more than a bound common to
all, as PaddleSlim's get_ratios_by_loss() and Han et al., 2015 (Learning both Weights and
Connections). --ratio bounds what a further weight costs: under a bound by layer small layers, which
give little, would be pruned as far as large ones. Losses of layers do not add up, so the whole is
tested, too, beside global, uniform and erk. Model, width and classes are as in evaluate.py.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import signal
import sys
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from evaluate import check_classes
from readers.loader import Loader
from readers.sampler import EpochBatchSampler
from results.plots import log_scale, percent, plt, save
from tasks.lines import listed
from tasks.measure import class_names, evaluate
from training import batch_norm, checkpoint, convolutions, folders, pruning, train_state
from training.command_line import Parser, Stopped, number, one_line_errors
from training.options import add_device_options, add_network_options, check_early
from training.process import set_device
from training.tables import markdown
from training.trained import complete
from unstructured_pruner import UnstructuredPruner, prunable_parameters
from unstructured_pruning.blocks import size

FILE = "sensitivity.jsonl"
TILT = 1e-6  # by which a curve rises at least from ratio 0 to 1
WORST = 1e9  # in place of a loss that is not finite


class Part(paddle.io.Dataset):
    """Training pictures drawn by lot, prepared as in a test. (Lists are often sorted by class.)"""

    def __init__(self, dataset, samples: int):
        self.dataset = dataset
        dataset.mode = "val"
        self.indices = np.sort(np.random.default_rng(0).permutation(len(dataset))[:samples])
        self.classes = getattr(dataset, "classes", None)
        self.objects = getattr(dataset, "objects", None)  # of a detector's
        if self.objects is not None:
            self.objects = [self.objects[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple:
        item = self.dataset[int(self.indices[index])]
        return item if self.objects is None else (*item[:-1], np.int64(index))


class Measurements:
    """Tests of a network under distributions: each is made once, and kept in a file.

    Args:
        path: its first line has the settings, each other one what a distribution gave.
        test: () -> dict of numbers, of the network as it is.

    Raises:
        ValueError: the file is damaged, or has other settings.
    """

    def __init__(self, path: Path, settings: dict, model, test):
        self.path, self.model, self.test = path, model, test
        self.lines, self.found = [settings], {}
        if not path.exists():
            return
        try:
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]
            before = dict(self.lines[0])
            self.found = {(r["distribution"], r["ratio"]): r for r in self.lines[1:]}
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{path} is damaged; move it away") from None
        others = [name for name in settings if before.get(name) != settings[name]]
        if others:
            raise ValueError(
                f"{path} was measured with other {', '.join(others)}; give another --out, or move "
                "it away"
            )

    def __call__(self, distribution: str, ratio: float | None = None) -> dict:
        """
        Args:
            distribution: as of train.py's option.
            ratio: of all prunable weights; None: it follows from the distribution.
        """
        if (distribution, ratio) not in self.found:
            with pruned(self.model, distribution, ratio) as sparsity:
                record = {"distribution": distribution, "ratio": ratio, "sparsity": sparsity}
                record.update(self.test())
            self.found[distribution, ratio] = record
            self.lines.append(record)
            lines = "".join(json.dumps(line) + "\n" for line in self.lines)
            folders.replace(self.path, lines.encode())
        return self.found[distribution, ratio]


@contextlib.contextmanager
def pruned(model, distribution: str, ratio: float | None):
    """Within, the model is pruned, to the sparsity that is given; then as it was, bit for bit."""
    changed = [*prunable_parameters(model).values(), *batch_norm.statistics_of(model).values()]
    before = [tensor.clone() for tensor in changed]
    shares = {} if ratio is None else {"ratio": ratio}
    how = pruning.distribution(distribution)
    pruner = UnstructuredPruner(model, "ratio", distribution=how, **shares)
    try:
        pruner.step()
        yield pruner.prunable_sparsity()
    finally:
        with paddle.no_grad():
            for tensor, value in zip(changed, before):
                paddle.assign(value, output=tensor)


def curve(ratios: list[float], costs: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Ratios from 0 on, and what they cost: never less than a smaller ratio, and rising throughout.

    So every bound means one ratio.
    """
    x = np.array([0.0, *ratios])
    y = np.nan_to_num(np.array([0.0, *costs]), nan=WORST, posinf=WORST)
    return x, np.maximum.accumulate(y) + TILT * x


def ratios_at(curves: dict[str, tuple], bound: float) -> dict[str, float]:
    """Of each layer the largest ratio that costs at most the bound, straight between the points."""
    return {name: float(np.interp(bound, y, x)) for name, (x, y) in curves.items()}


def ratios_for(curves: dict[str, tuple], sizes: dict[str, int], ratio: float) -> dict[str, float]:
    """The ratios at which so much of all weights is pruned, those first that cost the least each.

    That is least in the sum of what the layers cost alone, on the lower convex hulls of the curves.

    Args:
        ratio: at most the largest of the curves.
    """
    pieces = []
    for name, (x, y) in curves.items():
        start = 0
        while start < len(x) - 1:
            slopes = (y[start + 1 :] - y[start]) / (x[start + 1 :] - x[start])
            end = start + 1 + int(slopes.argmin())
            pieces.append((slopes.min() / sizes[name], name, float(x[end] - x[start])))
            start = end
    ratios, left = dict.fromkeys(curves, 0.0), ratio * sum(sizes.values())
    for _, name, width in sorted(pieces):
        taken = min(width, left / sizes[name])
        ratios[name] += taken
        left -= taken * sizes[name]
    return ratios


def as_option(ratios: dict[str, float]) -> str:
    """For --distribution; a layer that is left out has ratio 0."""
    rounded = {name: round(ratio, 4) for name, ratio in ratios.items()}
    return ",".join(f"{name}={ratio:g}" for name, ratio in rounded.items() if ratio)


def cell(record: dict, key: str) -> str:
    loss = f"{record['loss']:.3f}, " if "loss" in record else ""
    return f"{loss}{record[key]:.2%}"


def draw(records: dict, dense: dict, chosen: dict[str, float], key: str, out: Path) -> None:
    """On the left what each layer pruned alone gives; on the right the ratio that follows."""
    names = list(chosen)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.5 + 0.19 * len(names)), sharey=True, layout="constrained",
        width_ratios=[2, 1],
    )  # fmt: skip
    left.axvline(dense[key], color="black", linewidth=1, label="as it is")
    for ratio, marker in zip(sorted({ratio for _, ratio in records}), "osD^v<>Pp*Xh" * 9):
        values = [records[name, ratio][key] for name in names]
        left.plot(values, names, marker=marker, markersize=4, linewidth=1, label=f"{ratio:.4g}")
    left.legend(title="ratio")
    left.tick_params(axis="y", labelsize=8)
    if key == "loss":
        log_scale(left, "{x:g}")
    else:
        left.xaxis.set_major_formatter(percent())
    left.set_xlabel(f"{key} on training pictures, this layer alone pruned")
    right.barh(names, list(chosen.values()))
    right.set_xlim(0, 1)
    right.xaxis.set_major_formatter(percent())
    right.set_xlabel("ratio of the layer that follows")
    left.invert_yaxis()
    left.margins(y=0.01)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, out, "sensitivity")


def parse(argv) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, part = parser.add_argument, number(float, 0, 1, part=True)
    # fmt: off
    add("--pretrained_model", metavar="PATH", required=True,
        help="folder, prefix or .pdparams file of the network, usually dense")
    add("--ratios", type=number(float, 0.01, 1, part=True), nargs="+", metavar="RATIO",
        default=[0.5, 0.75, 0.9, 0.95], help="of each layer alone (default: 0.5 0.75 0.9 0.95)")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--ratio", type=part, default=pruning.DEFAULTS["ratio"],
        help="fraction of all prunable weights to prune (default: %(default)s)")
    goal.add_argument("--max_drop", type=part, metavar="DROP",
        help="in place of --ratio: what each layer alone may cost of top-1 or mAP, like 0.02")
    add("--samples", type=number(int, 1), default=256,
        help="training pictures to test on; memory holds them (default: %(default)s)")
    add("--out", type=Path, default=Path("sensitivity"),
        help=f"folder for {FILE} and the picture (default: %(default)s)")
    # fmt: on
    add_network_options(parser, saved=True)
    add_device_options(parser)
    args = parser.parse_args(argv)
    check_early(args)
    args.ratios = sorted(set(args.ratios))
    if args.max_drop is None and not 0 < args.ratio <= args.ratios[-1]:
        parser.error(f"--ratio {args.ratio:g} must be above 0 and at most the largest of --ratios")
    return args


@one_line_errors
def main(argv=None) -> None:
    args = parse(argv)
    set_device(args.use_gpu)
    weights = folders.find_weights(args.pretrained_model)
    saved = train_state.read(weights.parent)
    task = complete(args, saved)
    model = task.make_model(args)
    checkpoint.load_weights(model, weights, saved)
    fast = bool(saved and saved.options.get("fast_convolutions"))
    if fast:
        convolutions.use_fast(model)
    dataset = Part(task.make_dataset(args, "train"), args.samples)
    check_classes(class_names(dataset), saved)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {args.out}: {error.strerror}; give another folder") from None
    numbers = EpochBatchSampler(len(dataset), args.batch_size, shuffle=False, drop_last=False)
    batches = list(Loader(dataset, numbers, args.num_workers))
    settings = {
        "weights": train_state.sha256(weights),
        "model": args.model,
        "samples": len(dataset),
        "pictures": digest(batches),
        "fast_convolutions": fast,
    }

    def test() -> dict:
        if batch_norm.layers_of(model):
            batch_norm.measure([model], batches)
        return evaluate(model, batches, task.Metric(dataset))

    measure = Measurements(args.out / FILE, settings, model, test)
    sizes = {name: size(weight) for name, weight in prunable_parameters(model).items()}
    alone = {(name, ratio): f"{name}={ratio:g}" for name in sizes for ratio in args.ratios}
    left = sum((text, None) not in measure.found for text in alone.values())
    try:
        dense = measure("global", 0.0)
        if not all(math.isfinite(dense[name]) for name in task.MEASURED):
            raise ValueError(f"{weights} gives {listed(dense, task.MEASURED)}unpruned")
        records = {}
        with tqdm(total=left, unit=" tests", desc="layers", disable=None) as bar:
            for place, text in alone.items():
                new = (text, None) not in measure.found
                records[place] = measure(text)
                bar.update(new)
        conclude(args, task.MEASURED, measure, dense, records, sizes)
    except KeyboardInterrupt:
        raise Stopped(
            signal.SIGINT,
            f"interrupted; {len(measure.found)} tests are in {measure.path}, and the same command "
            "goes on",
        ) from None


def conclude(args, measured, measure: Measurements, dense, records, sizes: dict) -> None:
    """Prints and draws what the layers give, and tests the ratios that follow beside the others'.

    Args:
        measured: of the task.
        dense: the record of the network as it is.
        records: of each layer, by its name, and ratio.
        sizes: weights of each layer.
    """
    # A few hundred pictures tell little by top-1, of which each is a step, and more by the loss.
    by_loss = args.max_drop is None and "loss" in measured
    accuracy, key = measured[0], "loss" if by_loss else measured[0]
    sign = 1 if by_loss else -1
    curves = {
        name: curve(args.ratios, [sign * (records[name, r][key] - dense[key]) for r in args.ratios])
        for name in sizes
    }
    if args.max_drop is None:
        chosen = ratios_for(curves, sizes, args.ratio)
    else:
        chosen = ratios_at(curves, args.max_drop + TILT)
    option = as_option(chosen)
    if not option:
        raise ValueError("no layer is to be pruned; raise --ratio or --max_drop")
    compared = {"as it is": dense, "sensitivity": measure(option)}
    whole = round(compared["sensitivity"]["sparsity"], 6)
    compared.update({name: measure(name, whole) for name in ("global", "uniform", "erk")})

    shown = f"{'loss, ' if 'loss' in measured else ''}{accuracy}"
    print(f"{dense['samples']} training pictures; {shown} with one layer pruned to\n")
    rows = [
        [name, f"{n:,}", *(cell(records[name, r], accuracy) for r in args.ratios),
         f"{chosen[name]:.4f}"]
        for name, n in sizes.items()
    ]  # fmt: skip
    print(markdown(["layer", "weights", *(f"{r:g}" for r in args.ratios), "chosen"], rows))
    print(f"\nall layers pruned, without training; chosen by {key}\n")
    rows = [[n, f"{r['sparsity']:.2%}", cell(r, accuracy)] for n, r in compared.items()]
    print(markdown(["distribution", "sparsity", shown], rows) + "\n")
    draw(records, dense, chosen, key, args.out)
    del compared["as it is"]
    costs = {name: sign * record[key] for name, record in compared.items()}
    costs = {name: cost if math.isfinite(cost) else math.inf for name, cost in costs.items()}
    if (best := min(costs, key=costs.get)) != "sensitivity":
        print(f"--distribution {best} --ratio {whole:.4g} is better here than the one below")
    print(f"--distribution '{option}'")


def digest(batches: list[list[paddle.Tensor]]) -> str:
    """SHA-256 of all that the data set gives."""
    total = hashlib.sha256()
    for batch in batches:
        for column in batch:
            total.update(column.numpy().tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
