"""Starts a training of several processes under Paddle's launcher.

This file is also the program that the launcher starts: train.py with spies and, where a test asks
for it, a fault. What the launcher does (Paddle 2.6 and 3.3):

* A worker that ends with another status than 0, or by a signal, ends the run: the launcher looks
  every second, sends the others SIGTERM and 3 s later SIGKILL, and ends with the status of the
  first rank that has one. --max_restart (3 by default) is for --master etcd:// only: otherwise
  nothing is restarted.
* A SIGTERM or SIGINT to the launcher goes to the workers as SIGTERM, 30 s later as SIGKILL; its own
  status is then the number of the signal (15), whatever the workers' statuses are.
* "SIGTERM" means: up to three times, 0.2 s apart, as long as the worker lives, and to its whole
  process group, so that processes that read data get it too; rank by rank, in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import zlib  # before paddle: 2.6 crashes in zlib on some Pythons otherwise
from pathlib import Path

import paddle
from conftest import ROOT

import train
from readers import small_images as cifar_reader
from tasks import classification
from training import checkpoint, run
from unstructured_pruner import UnstructuredPruner

SECONDS = 60  # for a run to end by itself
MARK = "PRUNING_TEST_RUN"  # in the environment of all processes of a run


def tiny(options, pretrained=False):
    """In place of classification.make_model: no batch norm, no dropout."""
    nn = paddle.nn
    return nn.Sequential(
        nn.Conv2D(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2D(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, options.num_classes),
    )  # fmt: skip


def normed(options, pretrained=False):
    """The same with a batch norm."""
    nn = paddle.nn
    return nn.Sequential(
        nn.Conv2D(3, 8, 3, stride=4), nn.BatchNorm2D(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, options.num_classes),
    )  # fmt: skip


def spy_on_samples() -> list:
    """Lists of mode, epoch, sample number and the picture's checksum, in the order of access."""
    seen, getitem = [], cifar_reader.Cifar10.__getitem__

    def spy(self, index):
        image, label = getitem(self, index)
        seen.append([self.mode, self.epoch, index, zlib.crc32(image.tobytes())])
        return image, label

    cifar_reader.Cifar10.__getitem__ = spy
    return seen


def worker(folder: str, fault: str, *options: str) -> None:
    """A rank. Leaves its process number, its samples and the steps it saved in the folder."""
    rank, options, files = train.dist.get_rank(), list(options), Path(folder)
    classification.make_model = normed if fault == "batch norm" else tiny
    seen, saved = spy_on_samples(), []
    save, seed_step, pruner_step = checkpoint.save, run.seed_step, UnstructuredPruner.step

    def spy_on_save(run, finished=False):
        if rank == 0:
            saved.append([run.epoch, run.step])
            if fault == "slow":
                time.sleep(1)
        save(run, finished)

    def slow_step(seed, step):
        if step == 2:
            (files / f"under way {rank}").touch()
        time.sleep(0.15)
        seed_step(seed, step)

    def flip(self):
        pruner_step(self)
        if rank == 1 and self.masks["0.weight"].numpy().any():
            mask = self.masks["0.weight"].numpy()
            mask.flat[0] = 1 - mask.flat[0]
            self.masks["0.weight"].set_value(mask)

    checkpoint.save = spy_on_save
    if fault in ("slow", "slow step"):
        run.seed_step = slow_step
    if fault == "flip":
        UnstructuredPruner.step = flip
    if fault == "apart" and rank == 1:
        options[options.index("--model_path") + 1] = str(files / "apart")
    part = files / f".{rank}"
    part.write_text(str(os.getpid()))
    part.rename(files / f"pid{rank}")
    try:
        train.main(options)
    finally:
        (files / f"rank{rank}.json").write_text(json.dumps({"seen": seen, "saved": saved}))


def processes(mark: str) -> list[int]:
    """All processes of a run, also those in sessions of their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def launched(folder: Path, options, fault: str = "", nproc: int = 2, nodes=()):
    """The launcher, started; no process of its run is left afterwards."""
    folder.mkdir(exist_ok=True)
    mark = uuid.uuid4().hex
    with open(folder / "launcher.log", "w") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", *nodes,
             "--nproc_per_node", str(nproc), "--log_dir", folder / "log",
             __file__, folder, fault, *map(str, options)],
            env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    launcher.mark = mark
    try:
        yield launcher
    finally:
        while left := processes(mark):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            launcher.poll()
            time.sleep(0.05)
        launcher.wait()


def ended(launcher) -> int:
    """The status, of a run that ended by itself and left no process."""
    status = launcher.wait(timeout=SECONDS)
    assert processes(launcher.mark) == []
    return status


def ranks(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def log_of(folder: Path) -> str:
    """What the workers wrote."""
    return "\n".join(path.read_text() for path in sorted((folder / "log").glob("workerlog.*")))


def wait_for(launcher, condition):
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert launcher.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


if __name__ == "__main__":
    sys.exit(worker(*sys.argv[1:]))
