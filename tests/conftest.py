"""What the tests of several modules share: small data, and ways to look at a run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import tarfile
import time
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import evaluate
import train
from demos import shapes
from readers import small_images as cifar_reader
from training import checkpoint, folders, train_state
from training.folders import MASKS, OPTIMIZER, STATE

pytest.register_assert_rewrite("hostile", "launcher", "sparse_files")
from hostile import SECONDS, batch, options, write_archive  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
long = pytest.mark.skipif(not os.environ.get("CI"), reason="takes long: runs with CI=true")
SHARED = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not beside the project")


@pytest.fixture(scope="session")
def cifar_dir(tmp_path_factory):
    """A folder with a CIFAR-10 archive of 40 training and 10 test pictures."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in names:
            count = 10 if name == "test_batch" else 8
            batch = {
                b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                b"labels": [int(label) for label in rng.integers(0, 10, count)],
            }
            content = pickle.dumps(batch, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="session")
def imagenet_dir(tmp_path_factory):
    """A folder with ImageNet's lists over 4 training and 3 test pictures of 40x32."""
    folder = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for mode, count in (("train", 4), ("val", 3)):
        lines = []
        for i in range(count):
            name = f"{mode} {i}.JPEG"
            Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / name)
            lines.append(f"{name} {i}\n")
        (folder / f"{mode}_list.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def voc_dir(tmp_path_factory):
    """A folder with 9 training and 5 test pictures of 64x64 in VOC's layout, and 3 classes."""
    folder = tmp_path_factory.mktemp("voc")
    shapes.make(folder, train=9, test=5, side=64)
    return folder


@pytest.fixture
def small(cifar_dir):
    """Options for an epoch of 2 steps: 40 training pictures, the last 8 of them dropped."""
    return ["--data_dir", str(cifar_dir), "--scale", "0.25", "--batch_size", "16",
            "--num_workers", "0", "--use_gpu", "false"]  # fmt: skip


def weights(path) -> dict[str, np.ndarray]:
    state = paddle.load(str(path), return_numpy=True)
    return {name: value for name, value in state.items() if isinstance(value, np.ndarray)}


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def error_line(capfd, main, *options) -> str:
    """The last line on stderr of a program that has to end with status 2 and without traceback."""
    with pytest.raises(SystemExit) as ended:
        main([str(option) for option in options])
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in out + err
    return err.rstrip("\n").splitlines()[-1]


@pytest.fixture
def terminal():
    """Ctrl-C works, in this process and in those that it starts, also where the tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, optimizer, masks and metrics (but timings) of two runs, bit for bit."""
    averages = [path.name for path in a.glob("average-pruned.*")]
    assert averages == [path.name for path in b.glob("average-pruned.*")]
    for name in (folders.find_weights(a).name, OPTIMIZER, *averages):
        left, other = checkpoint.read_arrays(a / name), checkpoint.read_arrays(b / name)
        np.testing.assert_equal(left, other, name)  # to the bit, also in dicts
    left, other = ((folder / STATE).resolve().parent / MASKS for folder in (a, b))
    assert left.read_bytes() == other.read_bytes() if left.exists() else not other.exists()
    timed = ("seconds", "images_per_sec")
    assert [{k: v for k, v in r.items() if k not in timed} for r in metrics(a)] == [
        {k: v for k, v in r.items() if k not in timed} for r in metrics(b)
    ]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(cifar_reader, "get_path_from_url", refuse)
    monkeypatch.setattr(cifar_reader.socket, "create_connection", refuse)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with weights, optimizer and masks as train.py saves them."""
    folder, data = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("data")
    write_archive(data, batch(16))
    train.main([*options(data), "--num_epochs", "1", "--model_path", str(folder)])
    return folder / "epoch-0"


class Refused:
    """Runs a program that has to refuse a file, by one short line that names it, and in time."""

    def __init__(self, capfd, folder: Path, trained: Path):
        self.capfd, self.trained = capfd, trained
        self.folder, self.canary = folder / "files", folder / "canary"
        self.folder.mkdir()

    def __call__(self, name: str, main, *options) -> str:
        before = {path: path.lstat().st_mtime_ns for path in self.folder.rglob("*")}
        started = time.process_time()
        message = error_line(self.capfd, main, *options)
        assert time.process_time() - started < SECONDS
        assert name in message
        assert len(message) < 9000
        assert message.isprintable()
        assert not self.canary.exists()
        assert {path: path.lstat().st_mtime_ns for path in self.folder.rglob("*")} == before
        return message

    def evaluate(self, name: str, data="digits") -> str:
        data_dir = [] if data == "digits" else ["--data_dir", self.folder]
        return self(name, evaluate.main, "--pruned_model", self.folder, "--scale", 0.25,
                    "--data", data, *data_dir,
                    "--use_gpu", "false", "--num_workers", 0)  # fmt: skip

    def resume(self, name: str, content: bytes | None) -> str:
        """Of a checkpoint with this file, whose checksums are right."""
        for path in self.trained.iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())
        if content is not None:
            (self.folder / name).write_bytes(content)
            train_state.seal(json.loads((self.trained / STATE).read_text()), self.folder)
        return self(name, train.main, *options(self.data), "--num_epochs", 2,
                    "--pretrained_model", self.folder, "--resume_epoch", 0,
                    "--model_path", self.folder.parent / "new")  # fmt: skip

    @property
    def data(self) -> Path:
        folder = self.folder.parent / "data"
        folder.mkdir()
        write_archive(folder, batch(16))
        return folder


@pytest.fixture
def refused(capfd, tmp_path, trained):
    return Refused(capfd, tmp_path, trained)


@pytest.fixture
def large_tmp_path(tmp_path):
    """Removed at once: pytest would keep that of three sessions, gigabytes here."""
    yield tmp_path
    shutil.rmtree(tmp_path)
