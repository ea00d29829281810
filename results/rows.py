"""What results/experiments.py trains: data sets, and the rows of their tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Data:
    """A data set, its network, and what the trainings on it have in common."""

    title: str
    options: list[str]
    dense: list[str]  # of the network that the others start from
    rest: list[str]  # of the others, whose own options come later and win


@dataclass
class Row:
    data: str
    name: str
    method: str
    target: str
    options: list[str]
    program: str = "train.py"
    seeds: int = 3
    control: str = "control"  # the row that it is compared with: dense, of the same length

    @property
    def full_name(self) -> str:
        return f"{self.data}-{self.name}"

    @property
    def is_start(self) -> bool:
        """Whether the others of its data set begin with its weights."""
        return self.name == "dense"


COMMON = ["--num_workers", "0", "--use_gpu", "false", "--use_pretrained", "false"]
COMMON += ["--lr_strategy", "cosine_decay", "--test_period", "1000"]
DATA = {
    "imagenette": Data(
        "Imagenette",
        ["--data", "imagenet", "--num_classes", "10", "--image_size", "128", "--scale", "0.75",
         "--batch_size", "32"],
        ["--num_epochs", "8", "--lr", "0.002"],
        ["--num_epochs", "12", "--lr", "0.002"],
    ),
    "cifar": Data(
        "CIFAR-10",
        ["--data", "cifar10", "--scale", "0.25", "--batch_size", "64"],
        ["--num_epochs", "30", "--lr", "0.1"],
        ["--num_epochs", "15", "--lr", "0.1"],
    ),
    "fashion": Data(
        "Fashion-MNIST",
        ["--data", "fashion_mnist", "--scale", "0.25", "--batch_size", "64"],
        ["--num_epochs", "6", "--lr", "0.05"],
        ["--num_epochs", "5", "--lr", "0.02"],
    ),
    "digits": Data(
        "digits",
        ["--data", "digits", "--scale", "1", "--batch_size", "32"],
        ["--num_epochs", "8", "--lr", "0.05"],
        ["--num_epochs", "5", "--lr", "0.02"],
    ),
}  # fmt: skip
DENSE = ["--pruning_mode", "none"]


def ratio(value: str, *more: str) -> list[str]:
    return ["--pruning_mode", "ratio", "--ratio", value, *more]


def threshold(value: str) -> list[str]:
    return ["--pruning_mode", "threshold", "--threshold", value]


def gmp(value: str, epochs: int, *more: str) -> list[str]:
    """Rising over the first `epochs`."""
    return ratio(value, "--pruning_strategy", "gmp", "--pruning_epochs", str(epochs),
                 "--pruning_steps", "50", *more)  # fmt: skip


def held(epochs: int) -> list[str]:
    """The full rate for so long."""
    return ["--lr_hold_epochs", str(epochs)]


def same_rows(data: str, threshold_at: str, rise: int) -> list[Row]:
    """The rows that every data set has."""
    return [
        Row(data, "dense", "dense, where the others start", "", DENSE),
        Row(data, "control", "dense control", "", DENSE),
        Row(data, "threshold", f"threshold {threshold_at}", "", threshold(threshold_at)),
        Row(data, "ratio-55", "ratio", "55%", ratio("0.55")),
        Row(data, "gmp-75", "GMP", "75%", gmp("0.75", rise)),
    ]


NO_FLOOR = ["--min_layer_density", "0", "--min_channel_density", "0"]
ERK = ["--distribution", "erk"]
TEACHER = ["--teacher", "{dense}"]  # the network that it starts from
TAUGHT = [*held(8), *TEACHER]
POINTWISE = ["--prune_params_type", "conv1x1_only"]
HELPED = [  # each alone, beside gmp-90
    ("hold-90", "held rate", held(3)),
    ("teacher-90", "teacher", TEACHER),
    ("smoothing-90", "smoothed labels", ["--label_smoothing", "0.1"]),
    ("ema-90", "average of weights", ["--ema", "0.99"]),
    ("bn-90", "batch norm measured anew", ["--recalibrate_bn", "100"]),
]
RIGL = [*ERK, "--prune_period", "50"]


def imagenette(name: str, method: str, target: str, lr: str, options: list[str], seeds: int = 1):
    return Row("imagenette", name, method, target, [*options, "--lr", lr], seeds=seeds)


def long(name: str, method: str, target: str, lr: str, options: list[str]) -> Row:
    """30 epochs in place of 12."""
    options = [*options, "--lr", lr, "--num_epochs", "30"]
    return Row("imagenette", f"long-{name}", f"{method}, 30 epochs", target, options, seeds=1,
               control="long-control")  # fmt: skip


ROWS = [
    *same_rows("imagenette", "0.03", 8)[:-1],
    imagenette("taught-control", "dense control, teacher", "", "0.002", [*DENSE, *TEACHER]),
    imagenette("taught-55", "ratio, teacher", "55%", "0.002", ratio("0.55", *TEACHER)),
    imagenette("ratio-75", "ratio, in one shot", "75%", "0.005", ratio("0.75")),
    imagenette("pointwise-75", "GMP, 1x1 only", "75%", "0.005", gmp("0.75", 8, *POINTWISE)),
    imagenette("gmp-75", "GMP", "75%", "0.005", gmp("0.75", 8)),
    imagenette("taught-75", "GMP, held rate, teacher", "75%", "0.005", gmp("0.75", 8, *TAUGHT)),
    imagenette("static-90", "ratio, static masks", "90%", "0.01",
               ratio("0.9", "--prune_period", "1000000")),
    imagenette("gmp-90", "GMP", "90%", "0.01", gmp("0.9", 8)),
    imagenette("erk-90", "GMP, ERK", "90%", "0.01", gmp("0.9", 8, *ERK)),
    imagenette("hold-90", "GMP, held rate", "90%", "0.01", gmp("0.9", 8, *held(8))),
    imagenette("taught-90", "GMP, held rate, teacher", "90%", "0.01", gmp("0.9", 8, *TAUGHT), 3),
    imagenette("gmp-95", "GMP", "95%", "0.01", gmp("0.95", 8)),
    imagenette("no-floor-95", "GMP, no floor", "95%", "0.01", gmp("0.95", 8, *NO_FLOOR)),
    imagenette("erk-95", "GMP, ERK", "95%", "0.01", gmp("0.95", 8, *ERK)),
    imagenette("taught-95", "GMP, held rate, teacher", "95%", "0.01", gmp("0.95", 8, *TAUGHT)),
    long("control", "dense control", "", "0.002", DENSE),
    long("90", "GMP, held rate, teacher", "90%", "0.01", gmp("0.9", 20, *held(20), *TEACHER)),
    long("95", "GMP, held rate, teacher", "95%", "0.01", gmp("0.95", 20, *held(20), *TEACHER)),
    *same_rows("cifar", "0.05", 10)[:-1],
    Row("cifar", "hold-75", "GMP, held rate", "75%", gmp("0.75", 10, *held(10))),
    Row("cifar", "gmp-90", "GMP", "90%", gmp("0.9", 10), seeds=1),
    Row("cifar", "hold-90", "GMP, held rate", "90%", gmp("0.9", 10, *held(10))),
    Row("cifar", "taught-90", "GMP, held rate, teacher", "90%",
        gmp("0.9", 10, *held(10), *TEACHER), seeds=1),
    Row("cifar", "hold-95", "GMP, held rate", "95%", gmp("0.95", 10, *held(10)), seeds=1),
    *same_rows("fashion", "0.08", 3),
    Row("fashion", "ratio-75", "ratio", "75%", ratio("0.75")),
    Row("fashion", "ratio-90", "ratio", "90%", ratio("0.9")),
    Row("fashion", "static-90", "ratio, static masks", "90%",
        ratio("0.9", "--prune_period", "1000000")),
    Row("fashion", "local-90", "ratio, same in all layers", "90%",
        ratio("0.9", "--local_sparsity")),
    Row("fashion", "erk-90", "ratio, ERK", "90%", ratio("0.9", *ERK)),
    Row("fashion", "random-90", "ratio, the same random weights", "90%", ratio("0.9"),
        program="-m results.random_pruning"),
    Row("fashion", "block-75", "ratio, blocks of 4x1", "75%",
        ratio("0.75", "--sparse_block", "4", "1")),
    Row("fashion", "rigl-90", "RigL", "90%", ratio("0.9", *RIGL), program="-m results.rigl 585"),
    Row("fashion", "gmp-90", "GMP", "90%", gmp("0.9", 3)),
    *(Row("fashion", name, f"GMP, {method}", "90%", gmp("0.9", 3, *options))
      for name, method, options in HELPED),
    Row("fashion", "gmp-95", "GMP", "95%", gmp("0.95", 3)),
    Row("fashion", "no-floor-95", "GMP, no floor", "95%", gmp("0.95", 3, *NO_FLOOR)),
    *same_rows("digits", "0.04", 3),
]  # fmt: skip
