"""Runs the experiments of results/README.md, one after another or several at once.

    python -m results.experiments --out my_results --only fashion-gmp-90   # and what it starts from
    python -m results.experiments --out my_results
    python -m results.experiments --out results --table                    # of what is there

Every run is a line in OUT/runs.jsonl: options, measured values, versions, hardware, commit. Called
again it goes on where it was interrupted. Each training takes one thread, so that its result does
not depend on --jobs. --left_out measures on pictures left out of the training in place of the test
pictures: there rates are to be chosen, with --more, options for every run but the dense ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peer import ROOT, with_project
from benchmarks.report import cpu_name, fast_products
from readers.loader import available_cores
from results import folders as data_folders
from results.rows import COMMON, DATA, ROWS, Row
from results.tables import STUDENT, table
from training import folders, train_state
from training.command_line import Parser, number, one_line_errors

ENVIRONMENT = {"OMP_NUM_THREADS": "1", **fast_products()}


@dataclass
class Suite:
    out: Path
    weights: Path  # that Imagenette's dense network starts from
    epochs: int | None = None  # in place of the rows' own, for tests
    left_out: bool = False
    more: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def folder(self, row: Row, seed: int) -> Path:
        return self.out / "models" / f"{row.full_name}-seed{seed}"

    def data_folder(self, data: str) -> Path:
        return self.out / "data" / (f"{data}-left_out" if self.left_out else data)

    def command(self, row: Row, seed: int) -> list[str]:
        data = DATA[row.data]
        words = [*row.program.split(), *data.options, *COMMON]
        words += [*data.dense, *row.options] if row.is_start else [*data.rest, *row.options]
        words += ["--seed", str(seed)] + ([] if row.is_start else self.more)
        if self.epochs:
            words += ["--num_epochs", str(self.epochs)]
        if row.data in data_folders.MAKE:
            words += ["--data_dir", str(self.data_folder(row.data))]
        if not row.is_start:
            start = str(self.folder(start_of(row), seed))
            words = [start if word == "{dense}" else word for word in words]
            words += ["--pretrained_model", start]
        elif row.data == "imagenette":
            words += ["--pretrained_model", str(self.weights)]
        return [*words, "--model_path", str(self.folder(row, seed))]

    def run(self, row: Row, seed: int) -> None:
        """Trains, measures, and adds a line to runs.jsonl; nothing if it is there."""
        folder = self.folder(row, seed)
        command = self.command(row, seed)
        there = self.is_recorded(row, seed, ["python", *command])
        if there and not row.is_start:
            print(f"{row.full_name}, seed {seed}: is in {self.out / 'runs.jsonl'}\n", end="")
            return
        print("$ python", *command, flush=True)
        whole = not folder.exists()
        record = {
            "row": row.full_name,
            "seed": seed,
            "command": ["python", *command],
            "environment": ENVIRONMENT,
            "hardware": cpu_name(),
            "commit": commit(),
        }
        try:
            seconds = program(
                *command, "--resume_epoch", "latest", "--save_steps", "500", "--keep", "1"
            )[1]
        except ValueError as error:
            if "is not finite" not in str(error):
                raise
            if not there:
                self.add({**record, "diverged": str(error)})  # which is a result, too
            return
        if there:  # its weights are needed, and are whole now
            return
        data = command[command.index("--data_dir") :][:2] if "--data_dir" in command else []
        path = folder / (folders.AVERAGE if "--ema" in command else folders.WEIGHTS)
        measure = ["--pruned_model", str(path), "--num_workers", "0", "--use_gpu", "false", *data]
        measured = json.loads(program("evaluate.py", *measure, "--json", "--per_layer")[0])
        layers = measured.pop("layers")
        pointwise = [layer for layer in layers if layer["shape"][2:] == [1, 1]]
        saved = train_state.read(folder)
        metrics = (folder / folders.METRICS).read_text().splitlines()
        self.add({
            **record, **measured,
            "sparsity_1x1": sum(layer["sparsity"] * layer["weights"] for layer in pointwise)
            / sum(layer["weights"] for layer in pointwise),
            "layers": {layer["name"]: round(layer["sparsity"], 5) for layer in layers},
            "epochs": len(metrics),
            "cpu_seconds": round(seconds, 1) if whole else None,  # None: it was interrupted
            "global_batch": saved.global_batch,
            "gzip_bytes": len(gzip.compress(path.read_bytes(), 6)),
            "bytes": path.stat().st_size,
            "versions": saved.versions,
        })  # fmt: skip

    def is_recorded(self, row: Row, seed: int, command: list[str]) -> bool:
        """Whether it ran before. Raises ValueError: another command stands under its name."""
        for run in read_runs(self.out):
            if (run["row"], run["seed"]) == (row.full_name, seed):
                if run["command"] != command:
                    raise ValueError(
                        f"{self.out / 'runs.jsonl'} has {row.full_name} by another command; give "
                        "another --out"
                    )
                return True
        return False

    def add(self, record: dict) -> None:
        path, part = self.out / "runs.jsonl", self.out / ".runs.part"
        with self.lock:  # without a line that was cut off
            lines = [json.dumps(run) + "\n" for run in [*read_runs(self.out), record]]
            part.write_text("".join(lines))
            part.replace(path)


def seeds_of(row: Row, rest: list[Row]) -> int:
    """As many of a dense network as the rows need that start from it."""
    if not row.is_start:
        return row.seeds
    return max((other.seeds for other in rest if other.data == row.data), default=row.seeds)


def start_of(row: Row) -> Row:
    return next(other for other in ROWS if other.data == row.data and other.is_start)


def program(*words: str) -> tuple[str, float]:
    """What it printed, and the seconds of a core that it took."""
    name = words[1] if words[0] == "-m" else words[0]
    if name.endswith(".py"):
        words = (str(ROOT / name), *words[1:])
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(
            [sys.executable, *words],
            env={**with_project(), **ENVIRONMENT},
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
    return read_lines(out / "runs.jsonl")


def read_lines(path: Path) -> list[dict]:
    """Those of a file of JSON, without a last one that was cut short."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


@one_line_errors
def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    names = [row.full_name for row in ROWS]
    add("--out", type=Path, default=Path("my_results"))
    for name, source in data_folders.SOURCES.items():
        add(f"--{name}", type=Path, default=source, metavar="DIR", help="(default: %(default)s)")
    add(
        "--weights",
        type=Path,
        default=Path("data/mobilenet_v1_x0.75.safetensors"),
        metavar="FILE",
        help="that imagenette-dense starts from (default: %(default)s)",
    )
    add("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    add("--seeds", type=number(int, 1, max(STUDENT)), help="of each row (default: 3 or 1)")
    add("--left_out", action="store_true", help="measure on training pictures that are left out")
    add("--more", nargs=argparse.REMAINDER, default=[], help="options for train.py, at the end")
    add(
        "--jobs",
        type=number(int, 1),
        default=available_cores(),
        help="runs at once (default: a core each)",
    )
    add("--epochs", type=number(int, 1), help=argparse.SUPPRESS)
    add("--table", action="store_true", help="draw the tables, run nothing")
    args = parser.parse_args(argv)
    args.sources = {name: getattr(args, name) for name in data_folders.SOURCES}
    if not args.table:
        run_all(args)
    runs = read_runs(args.out)
    if not runs:
        raise ValueError(f"{args.out} has no runs.jsonl, or no run in it")
    deployed = read_lines(args.out / "deployed.jsonl")
    recorded = {run["row"].partition("-")[0] for run in runs}
    for name in [name for name in DATA if name in recorded]:
        print(f"\n{DATA[name].title}\n\n{table(runs, name, deployed)}")


def run_all(args) -> None:
    suite = Suite(args.out, args.weights, args.epochs, args.left_out, args.more)
    chosen = [row for row in ROWS if args.only is None or row.full_name in args.only]
    starts = {row.data: start_of(row) for row in chosen}
    for data in starts:
        if args.left_out and data not in data_folders.LEAVES_OUT:
            raise ValueError(f"of {data} nothing is left out; choose other rows by --only")
        if data in data_folders.MAKE:
            data_folders.make(data, args.sources[data], suite.data_folder(data), args.left_out)
    rest = [row for row in chosen if not row.is_start]
    for rows in (starts.values(), rest):  # what others start from comes first
        runs = [(row, seed) for row in rows for seed in range(args.seeds or seeds_of(row, rest))]
        pool = ThreadPoolExecutor(args.jobs)
        try:
            for done in [pool.submit(suite.run, *run) for run in runs]:
                done.result()
        finally:  # after an error or Ctrl-C what has not begun does not begin
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
