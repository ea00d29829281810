"""Does a training that is killed again and again end bit for bit where an undisturbed one does?

    python -m benchmarks.soak --kills 30 [--work_dir DIR]         # Linux, no GPU, some 10 minutes

Two trainings on scikit-learn's digits, one process and two ranks under Paddle's launcher, run once
undisturbed and once with SIGKILLs, each followed by the same command with --resume_epoch latest.
Under the launcher one of the ranks is killed, in turns, and the launcher then has to end by itself,
with an error and without leaving a rank. A third of the kills come while a save is under way, the
others at random moments, from the imports on. After each kill all checkpoints have to be whole.

Status 0: in the end weights, optimizer, masks and metrics are equal. Status 1: a line says what is
not, and DIR keeps all checkpoints and logs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.peer import ROOT
from training import checkpoint, folders
from training.command_line import number, one_line_errors

OPTIONS = ["--data", "digits", "--scale", "0.25", "--use_gpu", "false", "--num_workers", "0"]
OPTIONS += ["--model_period", "1", "--save_steps", "4", "--keep", "3", "--test_period", "2"]
OPTIONS += ["--resume_epoch", "latest"]
BATCH = 32  # of all ranks: 44 steps an epoch
MARK = "PRUNING_SOAK"  # with our process id in the environment of all processes started here


def processes() -> dict[str, psutil.Process]:
    """Those started here that are alive, by rank; '' is the launcher, or a lone training."""
    ours = [
        process
        for process in psutil.process_iter(["environ", "create_time"])
        if (process.info["environ"] or {}).get(MARK) == str(os.getpid())
    ]
    ours.sort(key=lambda process: process.info["create_time"], reverse=True)
    # The first process of a rank comes last and stays: train.py itself, none that it started.
    return {process.info["environ"].get("PADDLE_TRAINER_ID", ""): process for process in ours}


def running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_all() -> None:
    """Ranks are in sessions of their own, so that no single group has them all."""
    while there := processes():
        for rank in sorted(there):  # the launcher first
            with contextlib.suppress(psutil.NoSuchProcess):
                there[rank].kill()
        time.sleep(0.05)


def wait(process: subprocess.Popen, event=lambda: False, pause=0.05, seconds=600) -> bool:
    """True as soon as the event is there, False where the process ends before."""
    end = time.monotonic() + seconds
    while not event():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            sys.exit(f"soak.py: still running after {seconds} s: {' '.join(process.args)}")
        time.sleep(pause)
    return True


def difference(first: Path, second: Path) -> str:
    """What differs between the ends of two trainings; '' where they are equal bit for bit."""
    a, b = folders.find_latest(first), folders.find_latest(second)
    if a is None or b is None or a.position != b.position:
        return f"the newest checkpoints: {a and a.folder} and {b and b.folder}"
    a, b = a.folder, b.folder
    for folder, latest in ((first, a), (second, b)):
        if (link := folder / folders.STATE).resolve().parent != latest.resolve():
            return f"a link: {link} is not that of {latest.name}"
    parts = {
        "weights": lambda folder, latest: checkpoint.read_arrays(folders.find_weights(latest)),
        "best weights": lambda folder, latest: checkpoint.read_arrays(folder / folders.BEST),
        "optimizer": lambda folder, latest: checkpoint.read_arrays(latest / folders.OPTIMIZER),
        "masks": lambda folder, latest: dict(np.load(latest / folders.MASKS)),
        "metrics": lambda folder, latest: dict(enumerate(untimed(folders.read_metrics(folder)))),
    }
    for part, read in parts.items():
        here, there = read(first, a), read(second, b)
        if here.keys() != there.keys():
            return f"{part}: the names {sorted(here.keys() ^ there.keys())}"
        for name in here:
            if bits(here[name]) != bits(there[name]):
                return f"{part}: {name}"
    return ""


def bits(value) -> tuple | str:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return repr(value)


def untimed(records: list[dict]) -> list[dict]:
    return [{k: r[k] for k in r if k not in ("seconds", "images_per_sec")} for r in records]


class Training:
    """One command that is run undisturbed, and then killed and started again."""

    def __init__(self, name: str, ranks: int, epochs: int, folder: Path):
        self.name, self.ranks = name, [str(rank) for rank in range(ranks)] if ranks > 1 else [""]
        self.reference, self.killed, self.log = (
            folder / what for what in ("reference", "killed", "log.txt")
        )
        self.kills = self.kills_while_saving = 0
        launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        launch += ["--max_restart", "0", "--log_dir", str(folder / "launcher")]
        self.command = [sys.executable, *(launch if ranks > 1 else []), str(ROOT / "train.py")]
        self.command += [*OPTIONS, "--batch_size", str(BATCH // ranks), "--num_epochs", str(epochs)]
        folder.mkdir()

    def start(self, model_path: Path) -> subprocess.Popen:
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [*self.command, "--model_path", str(model_path)],
                stdout=log,
                stderr=log,
                env={**os.environ, MARK: str(os.getpid())},
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen) -> None:
        wait(process)
        if process.returncode:
            sys.exit(f"soak.py: {self.name}: status {process.returncode}, see {self.log}")

    def compare(self) -> None:
        if different := difference(self.reference, self.killed):
            sys.exit(f"soak.py: {self.name}: after {self.kills} kills they differ in {different}")

    def kill(self, rank: str, saving: bool, rng: np.random.Generator) -> bool:
        """Starts it and kills it; False where it ended before."""
        there: dict[str, psutil.Process] = {}
        before, seen = set(folders.checkpoints(self.killed)), set()
        let_pass = rng.integers(4)  # saves, so that the training gets on
        start, process = time.time(), self.start(self.killed)

        def all_ranks() -> bool:
            there.update(processes())
            return set(self.ranks) <= set(there)

        def saved_enough() -> bool:
            seen.update(folders.checkpoints(self.killed))
            return len(seen - before) >= let_pass

        def save_under_way() -> bool:  # the hidden folder that an earlier kill left is older
            try:
                return any(p.stat().st_mtime > start for p in self.killed.glob(".epoch-*.part"))
            except OSError:  # it is gone
                return False

        alive = wait(process, all_ranks, 0.01) and wait(process, saved_enough, 0.005)
        if not saving:
            time.sleep(rng.uniform(0, 3))
        elif alive:
            alive = wait(process, save_under_way, 0.0005)
        if not alive or not all(running(there[rank]) for rank in self.ranks):
            self.finish(process)
            return False
        there[rank].kill()
        wait(process, seconds=60)
        if process.returncode == 0 or (left := processes()):
            why = f"it left the ranks {sorted(left)}" if process.returncode else "its status is 0"
            sys.exit(f"soak.py: {self.name}: rank {rank} was killed, but {why}, see {self.log}")
        self.kills += 1
        self.kills_while_saving += saving
        return True

    def reached(self) -> str:
        all_saved = [folders.verified(p) for p in folders.checkpoints(self.killed).values()]
        return (
            f"newest checkpoint at step {all_saved[-1].step}" if all_saved else "no checkpoint yet"
        )


def soak(trainings: list[Training], kills: int) -> None:
    for training in trainings:
        started = time.perf_counter()
        training.finish(training.start(training.reference))
        seconds = time.perf_counter() - started
        print(f"{training.name}: undisturbed in {seconds:.0f} s", file=sys.stderr)
    rng = np.random.default_rng(0)
    for i in range(kills):
        training, saving = trainings[i % 2], i % 3 == 2
        rank = training.ranks[i // 2 % len(training.ranks)]
        while not training.kill(rank, saving, rng):  # it was faster: compared, and begun anew
            training.compare()
            shutil.rmtree(training.killed)
        who = f"{training.name}, rank {rank}" if rank else training.name
        moment = "while saving" if saving else "random"
        print(f"kill {i + 1}: {who}, {moment}, {training.reached()}", file=sys.stderr)
    for training in trainings:
        training.finish(training.start(training.killed))
        training.compare()
        print(
            f"{training.name}: {training.kills} kills, {training.kills_while_saving} while saving: "
            "weights, optimizer, masks and metrics are equal bit for bit"
        )


@one_line_errors
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=number(int, 2), default=30, help="of both (default: %(default)s)")
    add("--epochs", type=number(int, 1), default=4, help="of each training (default: %(default)s)")
    add("--work_dir", type=Path, metavar="DIR", help="new or empty (default: a temporary one)")
    args = parser.parse_args(argv)
    if sys.platform != "linux":
        raise NotImplementedError("tested on Linux alone")
    folder = (args.work_dir or Path(tempfile.mkdtemp(prefix="soak-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"--work_dir {folder} is not empty")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    trainings = [
        Training("one process", 1, args.epochs, folder / "one"),
        Training("two ranks", 2, args.epochs, folder / "two"),
    ]
    try:
        soak(trainings, args.kills)
    finally:
        kill_all()
    if not args.work_dir:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
