"""What the tests of several modules share: small data, and ways to look at a run."""

from __future__ import annotations

import io
import json
import pickle
import signal
import tarfile
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from demos import shapes

ROOT = Path(__file__).resolve().parent.parent


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
