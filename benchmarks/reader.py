"""How fast imagenet_reader.py reads ImageNet for training, beside PaddleSlim's demo reader.

    python -m benchmarks.reader

Writes photographs of ImageNet's usual 500x375 as JPEGs and reads them in turns with both, in one
process and one thread. Times are CPU times, medians over the rounds. Quality 90 is the default;
most of ImageNet is nearer to `--quality 96 --subsampling 4:4:4`, where decoding, which both readers
have to do, is a larger share.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import PIL
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.report import machine, markdown
from imagenet_reader import ImageNetDataset
from readers.pictures import decode, random_box, resize

WIDTH, HEIGHT = 500, 375


def write_photographs(folder: Path, count: int, quality: int, subsampling: str) -> float:
    """A data folder with different parts of scikit-learn's two photographs; kB a file."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images  # uint8 [427, 640, 3]
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        y, x = (rng.integers(a - b + 1) for a, b in zip(photograph.shape, (HEIGHT, WIDTH)))
        part = photograph[y : y + HEIGHT, x : x + WIDTH, :][:, :: rng.choice([-1, 1])]
        picture = Image.fromarray(np.ascontiguousarray(part))
        picture.save(folder / f"{i}.JPEG", quality=quality, subsampling=subsampling)
    (folder / "train_list.txt").write_text("".join(f"{i}.JPEG {i % 1000}\n" for i in range(count)))
    return sum(file.stat().st_size for file in folder.glob("*.JPEG")) / count / 1000


def read_as_paddleslim(path: Path, rng: np.random.Generator) -> np.ndarray:
    """What PaddleSlim 2.6's demo/imagenet_reader.py does to a training picture, step by step.

    The whole picture is decoded by Pillow, a random part is cut out and resized to 224 x 224 by
    Lanczos, perhaps mirrored, and made float32 planes, from which constants in float64 are taken.
    """
    picture = Image.open(path)
    width, height = picture.size
    shape = math.sqrt(rng.uniform(3 / 4, 4 / 3))  # width over the side of a square of equal area
    largest = min(1.0, width / height / shape**2, height / width * shape**2)
    side = math.sqrt(width * height * rng.uniform(min(0.08, largest), largest))
    w, h = int(side * shape), int(side / shape)
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    picture = picture.crop((x, y, x + w, y + h)).resize((224, 224), Image.LANCZOS)
    if rng.integers(2):
        picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    planes = np.array(picture).astype("float32").transpose(2, 0, 1) / 255
    planes -= np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    planes /= np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    return planes


def apart_from_lanczos(path: Path, rng: np.random.Generator) -> float:
    """Mean grey levels, of 255, between a part of the picture as resized here and by Lanczos."""
    pixels = decode(path.read_bytes())
    top, left, height, width = random_box(*pixels.shape[:2], rng)
    part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    lanczos = Image.fromarray(part).resize((224, 224), Image.LANCZOS)
    return float(np.abs(resize(part, 224, 224) - np.asarray(lanczos, np.float32)).mean())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pictures", type=int, default=200, help="files to read in a round (default: %(default)s)")
    add("--rounds", type=int, default=5, help="rounds to take the median of (default: %(default)s)")
    add("--quality", type=int, default=90, help="of the JPEGs, 1 to 100 (default: %(default)s)")
    add(
        "--subsampling",
        choices=["4:2:0", "4:2:2", "4:4:4"],
        default="4:2:0",
        help="of the JPEGs' colours (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.pictures < 1 or args.rounds < 1 or not 1 <= args.quality <= 100:
        parser.error("--pictures and --rounds must be at least 1, --quality in 1..100")

    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder), args.pictures, args.quality, args.subsampling)
        dataset = ImageNetDataset(folder, "train")
        paths = [Path(folder) / f"{i}.JPEG" for i in range(args.pictures)]

        def ours(epoch: int) -> None:
            dataset.epoch = epoch
            for i in range(len(dataset)):
                dataset[i]

        def paddleslim(epoch: int) -> None:
            rng = np.random.default_rng(epoch)
            for path in paths:
                read_as_paddleslim(path, rng)

        readers = {"PaddleSlim's demo reader": paddleslim, "imagenet_reader.py": ours}
        times = {name: [] for name in readers}
        for epoch in range(1 + args.rounds):  # the first round warms up
            for name, reader in readers.items():
                start = time.process_time()
                reader(epoch)
                times[name].append((time.process_time() - start) / args.pictures * 1000)
        rng = np.random.default_rng(0)
        apart = statistics.mean(apart_from_lanczos(path, rng) for path in paths)

    print(f"{args.pictures} JPEGs of {WIDTH}x{HEIGHT}, quality {args.quality}, ", end="")
    print(f"{args.subsampling}, {size:.0f} kB each; {args.rounds} rounds, one thread")
    medians = [statistics.median(ms[1:]) for ms in times.values()]
    rows = [
        [name, f"{median:.2f}", f"{min(ms[1:]):.2f} - {max(ms[1:]):.2f}", f"{1000 / median:.0f}"]
        for (name, ms), median in zip(times.items(), medians)
    ]
    print(f"\n{markdown(['reader', 'ms a picture', 'from - to', 'pictures/s'], rows)}\n")
    print(f"resized parts are {apart:.1f} of 255 grey levels from those by Lanczos, on average")
    versions = {"Pillow": PIL, "simplejpeg": simplejpeg, "OpenCV": cv2, "numpy": np}
    print(machine(**{name: module.__version__ for name, module in versions.items()}))
    print(f"{medians[0] / medians[1]:.1f} times as many pictures a second and core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
