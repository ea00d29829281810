"""The data that the experiments train on, laid out below --out.

Rates and recipes are chosen on a part of the training pictures, never on the test pictures: with
`left_out` that part stands where the test pictures do, and nothing is trained on it.
"""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

from readers.small_images import UNPACKED, Cifar10, FashionMNIST

LISTS = Path(__file__).resolve().parent / "imagenette"  # of the pictures that were used
SUBSET = 10_000  # training pictures of Fashion-MNIST
LEFT_OUT = 5_000  # of CIFAR-10's training pictures, the last ones, where something is chosen


def imagenette(source: Path, folder: Path, left_out: bool) -> None:
    """The pictures of the lists: 4,500 to train on, 500 left out, 2,000 to test.

    Raises:
        FileNotFoundError: source is not Imagenette.
    """
    for part in ("train", "val"):
        if not (source / part).is_dir():
            raise FileNotFoundError(
                f"there is no {source / part}: unpack imagenette2-160.tgz there"
            )
        (folder / part).symlink_to((source / part).resolve(), target_is_directory=True)
    test = "left_out" if left_out else "test"
    shutil.copyfile(LISTS / "train.txt", folder / "train_list.txt")
    shutil.copyfile(LISTS / f"{test}.txt", folder / "val_list.txt")


def cifar(source: Path, folder: Path, left_out: bool) -> None:
    """The archive; with left_out another one, whose test pictures are the last to train on."""
    name = "cifar-10-python.tar.gz"
    data = Cifar10(source, "train")  # downloads, or says what is missing
    if not left_out:
        there = name if (source / name).exists() else UNPACKED
        (folder / there).symlink_to((source / there).resolve())
        return
    kept = len(data) - LEFT_OUT
    batches = {f"data_batch_{i + 1}": slice(i * kept // 5, (i + 1) * kept // 5) for i in range(5)}
    with tarfile.open(folder / name, "w:gz", compresslevel=1) as archive:
        for batch, part in {**batches, "test_batch": slice(kept, None)}.items():
            pixels = data.images[part].reshape([-1, 3072])
            packed = pickle.dumps({b"data": pixels, b"labels": data.labels[part].tolist()}, 2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{batch}")
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))


def fashion(source: Path, folder: Path, left_out: bool) -> None:
    """Fashion-MNIST with its first 10,000 training pictures; none is left out."""
    FashionMNIST(source, "train"), FashionMNIST(source, "val")  # downloads, or says what is missing
    for (url, _), header, size in zip(FashionMNIST.train_files, (16, 8), (28 * 28, 1)):
        name = Path(url).name
        data = gzip.decompress((source / name).read_bytes())
        first = data[:4] + struct.pack(">i", SUBSET) + data[8 : header + SUBSET * size]
        (folder / name).write_bytes(gzip.compress(first, 6, mtime=0))
    for url, _ in FashionMNIST.val_files:
        shutil.copyfile(source / Path(url).name, folder / Path(url).name)


LEAVES_OUT = ("imagenette", "cifar")
MAKE = {"imagenette": imagenette, "cifar": cifar, "fashion": fashion}
SOURCES = {
    name: Path("data") / folder
    for name, folder in {
        "imagenette": "imagenette2-160",
        "cifar": "",
        "fashion": "fashion-mnist",
    }.items()
}


def make(data: str, source: Path, folder: Path, left_out: bool) -> None:
    """One of MAKE, whole or not at all; nothing where it is there."""
    if folder.is_dir():
        return
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    MAKE[data](source, part, left_out)
    part.rename(folder)
