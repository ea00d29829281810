"""Writes a small data set in Pascal VOC's layout: coloured shapes on photographs.

    python -m demos.shapes data/shapes --train 400 --test 100 --side 96

Three classes: red circles, green squares, blue triangles, one to three in a picture, on parts of
the two photographs that come with scikit-learn. The same seed gives the same pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

CLASSES = {"circle": (220, 40, 40), "square": (40, 180, 60), "triangle": (50, 70, 230)}


def draw(pixels: np.ndarray, name: str, box: list[int]) -> None:
    x1, y1, x2, y2 = box  # the pixels from x1 to x2 - 1
    if name == "circle":
        along = (np.arange(x2 - x1) + 0.5) / (x2 - x1) * 2 - 1  # middles of pixels, in -1..1
        inside = along**2 + along[:, None] ** 2 <= 1
        pixels[y1:y2, x1:x2][inside] = CLASSES[name]
    elif name == "square":
        pixels[y1:y2, x1:x2] = CLASSES[name]
    else:
        corners = [((x1 + x2 - 1) // 2, y1), (x1, y2 - 1), (x2 - 1, y2 - 1)]
        cv2.fillPoly(pixels, [np.array(corners)], CLASSES[name])


def picture(photographs: list[np.ndarray], side: int, rng: np.random.Generator):
    """Pixels, uint8 [side, side, 3], and its objects as (name, [x1, y1, x2, y2])."""
    photograph = photographs[rng.integers(len(photographs))]
    part = int(rng.integers(side, min(photograph.shape[:2]) + 1))
    top, left = (int(rng.integers(n - part + 1)) for n in photograph.shape[:2])
    window = photograph[top : top + part, left : left + part]
    pixels = cv2.resize(window, (side, side), interpolation=cv2.INTER_AREA)
    objects, covered = [], np.zeros((side, side), bool)
    while len(objects) < rng.integers(1, 4):
        size = int(rng.integers(side // 4, side // 2))
        x, y = (int(n) for n in rng.integers(0, side - size + 1, 2))
        if covered[y : y + size, x : x + size].any():
            continue
        covered[y : y + size, x : x + size] = True
        name = list(CLASSES)[rng.integers(len(CLASSES))]
        box = [x, y, x + size, y + size]
        draw(pixels, name, box)
        objects.append((name, box))
    return pixels, objects


def annotation(side: int, objects: list) -> str:
    entries = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for name, (x1, y1, x2, y2) in objects
    )
    size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>\n"
    return f"<annotation>\n{size}{entries}</annotation>\n"


def make(folder: Path, train: int, test: int, side: int, seed: int = 0) -> None:
    """Writes `folder`/VOC2007 and label_list.txt."""
    photographs, year = load_sample_images().images, folder / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / name).mkdir(parents=True, exist_ok=True)
    (folder / "label_list.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for part, (split, count) in enumerate({"trainval": train, "test": test}.items()):
        names = [f"{split}{number:05}" for number in range(count)]
        for number, name in enumerate(names):
            pixels, objects = picture(
                photographs, side, np.random.default_rng((seed, part, number))
            )
            path = str(year / "JPEGImages" / f"{name}.jpg")
            cv2.imwrite(
                path, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95]
            )
            (year / "Annotations" / f"{name}.xml").write_text(annotation(side, objects))
        listed = "".join(f"{name}\n" for name in names)
        (year / "ImageSets" / "Main" / f"{split}.txt").write_text(listed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=400, help="pictures (%(default)s)")
    parser.add_argument("--test", type=int, default=100, help="pictures (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 32 <= args.side <= 400:
        parser.error("--side must be in 32..400")
    make(**vars(args))


if __name__ == "__main__":
    main()
