"""Runs the experiments of results/README.md, one after another or several at once.

    python -m results.experiments --out my_results --fashion_mnist data/fashion-mnist
    python -m results.experiments --out my_results --only gmp-90   # and what it starts from
    python -m results.experiments --out results --table            # of what is there

Every run is a line in OUT/runs.jsonl: options, measured values, versions, hardware, commit. Called
again it goes on where it was interrupted. (In results/ every run is there, and none begins.)
Fashion-MNIST: the first 10,000 training pictures, all 10,000 test pictures. Each training takes one
thread, so that its result does not depend on --jobs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peer import ROOT, with_project
from benchmarks.report import cpu_name, markdown
from readers.loader import available_cores
from readers.small_images import FashionMNIST
from training import checkpoint, folders, train_state
from training.command_line import number, one_line_errors

SUBSET = 10_000
SEEDS = 3


@dataclass
class Row:
    name: str
    method: str
    target: str
    options: list[str]
    data: str = "fashion"
    program: str = "train.py"
    start: str | None = "dense"  # the row whose weights it begins with
    epochs: int = 5

    @property
    def full_name(self) -> str:
        return self.name if self.data == "fashion" else f"{self.data}-{self.name}"


DATA = {
    "fashion": ["--data", "fashion_mnist", "--scale", "0.25", "--batch_size", "64"],
    "digits": ["--data", "digits", "--scale", "1", "--batch_size", "32"],
}
COMMON = ["--lr_strategy", "cosine_decay", "--num_workers", "0", "--test_period", "100"]
COMMON += ["--use_gpu", "false", "--use_pretrained", "false"]
DENSE = ["--pruning_mode", "none"]
GMP = ["--pruning_strategy", "gmp", "--stable_epochs", "0", "--pruning_epochs", "3"]
GMP += ["--pruning_steps", "50", "--initial_ratio", "0.15"]


def ratio(value: str, *more: str) -> list[str]:
    return ["--pruning_mode", "ratio", "--ratio", value, *more]


def threshold(value: str) -> list[str]:
    return ["--pruning_mode", "threshold", "--threshold", value]


ROWS = [
    Row("dense", "dense, where the others start", "", DENSE, start=None, epochs=6),
    Row("control", "dense control", "", DENSE),
    Row("threshold", "threshold 0.08", "", threshold("0.08")),
    Row("ratio-55", "ratio", "55%", ratio("0.55")),
    Row("ratio-75", "ratio", "75%", ratio("0.75")),
    Row("ratio-90", "ratio", "90%", ratio("0.9")),
    Row("static-90", "ratio, static masks", "90%", ratio("0.9", "--prune_period", "1000000")),
    Row("local-90", "ratio, same in all layers", "90%", ratio("0.9", "--local_sparsity")),
    Row("erk-90", "ratio, ERK", "90%", ratio("0.9", "--distribution", "erk")),
    Row("random-90", "ratio, the same random weights", "90%", ratio("0.9"),
        program="-m results.random_pruning"),
    Row("block-75", "ratio, blocks of 4x1", "75%", ratio("0.75", "--sparse_block", "4", "1")),
    Row("gmp-75", "GMP", "75%", ratio("0.75", *GMP)),
    Row("gmp-90", "GMP", "90%", ratio("0.9", *GMP)),
    Row("gmp-95", "GMP", "95%", ratio("0.95", *GMP)),
    Row("dense", "dense, where the others start", "", DENSE, data="digits", start=None,
        epochs=8),
    Row("control", "dense control", "", DENSE, data="digits"),
    Row("threshold", "threshold 0.04", "", threshold("0.04"), data="digits"),
    Row("ratio-55", "ratio", "55%", ratio("0.55"), data="digits"),
    Row("gmp-75", "GMP", "75%", ratio("0.75", *GMP), data="digits"),
]  # fmt: skip


@dataclass
class Suite:
    out: Path
    fashion_mnist: Path
    epochs: int | None  # in place of the rows' own, for tests
    lock: threading.Lock = field(default_factory=threading.Lock)

    def folder(self, row: Row, seed: int) -> Path:
        return self.out / "models" / f"{row.full_name}-seed{seed}"

    def command(self, row: Row, seed: int) -> list[str]:
        epochs = str(self.epochs or row.epochs)
        options = [*DATA[row.data], *COMMON, *row.options, "--num_epochs", epochs]
        options += ["--lr", "0.05" if row.start is None else "0.02", "--seed", str(seed)]
        if row.data == "fashion":
            options += ["--data_dir", str(self.out / "fashion-mnist")]
        if row.start is not None:
            start = next(r for r in ROWS if (r.name, r.data) == (row.start, row.data))
            options += ["--pretrained_model", str(self.folder(start, seed))]
        return [*row.program.split(), *options, "--model_path", str(self.folder(row, seed))]

    def run(self, row: Row, seed: int) -> None:
        """Trains, measures, and adds a line to runs.jsonl; nothing if it is there."""
        folder = self.folder(row, seed)
        there = any((r["row"], r["seed"]) == (row.full_name, seed) for r in read_runs(self.out))
        if there and row.start is not None:
            print(f"{row.full_name}, seed {seed}: is in {self.out / 'runs.jsonl'}\n", end="")
            return
        command = self.command(row, seed)
        print("$ python", *command, flush=True)
        whole = not folder.exists()
        record = {"row": row.full_name, "seed": seed, "command": ["python", *command],
                  "hardware": f"{cpu_name()}, 1 thread", "commit": commit()}  # fmt: skip
        try:
            seconds = program(
                *command, "--resume_epoch", "latest", "--save_steps", "50", "--keep", "1"
            )[1]
        except ValueError as error:
            if "is not finite" not in str(error):
                raise
            self.add({**record, "diverged": str(error)})  # which is a result, too
            return
        if there:  # its weights are needed, and are whole now
            return
        data = command[command.index("--data_dir") :][:2] if "--data_dir" in command else []
        measured = json.loads(
            program("evaluate.py", "--pruned_model", str(folder), "--num_workers", "0",
                    "--use_gpu", "false", "--json", *data)[0]
        )  # fmt: skip
        saved = train_state.read(folder)
        records = [json.loads(line) for line in (folder / folders.METRICS).read_text().splitlines()]
        path = folder / folders.WEIGHTS
        pointwise = [
            value for value in checkpoint.read_arrays(path).values()
            if value.ndim == 4 and value.shape[2:] == (1, 1)
        ]  # fmt: skip
        self.add({
            **record, **measured,
            "sparsity_1x1": sum(int((w == 0).sum()) for w in pointwise)
            / sum(w.size for w in pointwise),
            "epochs": len(records),
            "cpu_seconds": round(seconds, 1) if whole else None,  # None: it was interrupted
            "global_batch": saved.global_batch,
            "gzip_bytes": len(gzip.compress(path.read_bytes(), 6)),
            "bytes": path.stat().st_size,
            "versions": saved.versions,
        })  # fmt: skip

    def add(self, record: dict) -> None:
        path, part = self.out / "runs.jsonl", self.out / ".runs.part"
        with self.lock:  # without a line that was cut off
            lines = [json.dumps(run) + "\n" for run in [*read_runs(self.out), record]]
            part.write_text("".join(lines))
            part.replace(path)


def program(*words: str) -> tuple[str, float]:
    """What it printed, and the seconds of a core that it took."""
    name = words[1] if words[0] == "-m" else words[0]
    if name.endswith(".py"):
        words = (str(ROOT / name), *words[1:])
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(
            [sys.executable, *words],
            env={**with_project(), "OMP_NUM_THREADS": "1"},
            stdout=out, stderr=errors,
        )  # fmt: skip
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        if running.returncode:
            why = errors.read().strip().splitlines()[-1:] or [""]
            raise ValueError(f"{name} ended with status {running.returncode}: {why[0]}")
        return out.read(), usage.ru_utime + usage.ru_stime


def read_runs(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_subset(source: Path, folder: Path) -> None:
    """Fashion-MNIST with its first 10,000 training pictures."""
    FashionMNIST(source, "train"), FashionMNIST(source, "val")  # downloads, or says what is missing
    folder.mkdir(parents=True, exist_ok=True)
    for (url, _), header, size in zip(FashionMNIST.train_files, (16, 8), (28 * 28, 1)):
        name = Path(url).name
        data = gzip.decompress((source / name).read_bytes())
        first = data[:4] + struct.pack(">i", SUBSET) + data[8 : header + SUBSET * size]
        (folder / name).write_bytes(gzip.compress(first, 6, mtime=0))
    for url, _ in FashionMNIST.val_files:
        shutil.copyfile(source / Path(url).name, folder / Path(url).name)


def commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


HEAD = ["method", "target", "sparsity, all / prunable / 1x1", "top-1", "top-5", "minus control",
        "epochs", "core seconds", "batch x cards", "gzipped, KB", "`--only`"]  # fmt: skip
MEANS = ("sparsity", "prunable_sparsity", "sparsity_1x1", "top1", "top5", "gzip_bytes")


def table(runs: list[dict], data: str) -> str:
    """Means over the seeds; behind top-1 and its distance to the control's the range."""
    whole = [run for run in runs if "diverged" not in run]
    control = {
        run["seed"]: run["top1"]
        for run in whole
        if run["row"] == ("control" if data == "fashion" else f"{data}-control")
    }
    lines = []
    for row in (row for row in ROWS if row.data == data):
        found = [run for run in whole if run["row"] == row.full_name]
        diverged = sum(run["row"] == row.full_name for run in runs) - len(found)
        remark = [f"{diverged} diverged"] if diverged else []
        if found:
            means = {key: statistics.mean(run[key] for run in found) for key in MEANS}
            top1 = [100 * run["top1"] for run in found]
            differences = [
                100 * (run["top1"] - control[run["seed"]])
                for run in found
                if run["seed"] in control and row.start and row.name != "control"
            ]
            seconds = [run["cpu_seconds"] for run in found if run["cpu_seconds"] is not None]
            cells = [
                "{sparsity:.2%} / {prunable_sparsity:.2%} / {sparsity_1x1:.2%}".format(**means),
                ", ".join([with_range(top1, "{:.2f}%"), *remark]),
                f"{means['top5']:.2%}",
                with_range(differences, "{:+.2f}") if differences else "",
                str(found[0]["epochs"]),
                f"{statistics.mean(seconds):.0f}" if seconds else "",
                f"{found[0]['global_batch']} x CPU",
                f"{means['gzip_bytes'] / 1000:.0f}",
            ]
        elif remark:
            cells = ["", *remark, *[""] * 6]
        else:
            continue
        lines.append([row.method, row.target, *cells, f"`{row.full_name}`"])
    return markdown(HEAD, lines)


def with_range(values: list[float], form: str) -> str:
    low, mean, high = (form.format(f(values)) for f in (min, statistics.mean, max))
    return f"{mean} ({low}..{high})" if len(values) > 1 else mean


@one_line_errors
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.full_name for row in ROWS]
    parser.add_argument("--out", type=Path, default=Path("my_results"))
    parser.add_argument("--fashion_mnist", type=Path, default=Path("data/fashion-mnist"))
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--jobs", type=number(int, 1), default=available_cores(),
                        help="runs at once (default: a core each)")  # fmt: skip
    parser.add_argument("--epochs", type=number(int, 1), help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="draw the tables, run nothing")
    args = parser.parse_args(argv)
    if not args.table:
        suite = Suite(args.out, args.fashion_mnist, args.epochs)
        chosen = [row for row in ROWS if args.only is None or row.full_name in args.only]
        started = {(row.start, row.data) for row in chosen}
        chosen += [r for r in ROWS if (r.name, r.data) in started and r not in chosen]
        if any(row.data == "fashion" for row in chosen):
            write_subset(args.fashion_mnist, args.out / "fashion-mnist")
        for first in (True, False):  # what others start from comes first
            runs = [
                (row, s) for row in chosen if (row.start is None) is first for s in range(SEEDS)
            ]
            pool = ThreadPoolExecutor(args.jobs)
            try:
                for done in [pool.submit(suite.run, *run) for run in runs]:
                    done.result()
            finally:  # after an error or Ctrl-C what has not begun does not begin
                pool.shutdown(cancel_futures=True)
    runs = read_runs(args.out)
    if not runs:
        raise ValueError(f"{args.out} has no runs.jsonl, or no run in it")
    for data in DATA:
        print(f"\n{data}\n\n{table(runs, data)}")


if __name__ == "__main__":
    sys.exit(main())
