"""Pictures for the tests of readers, and folders of them as ImageNet's."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from imagenet_reader import ImageNetDataset
from readers import pictures

COLOR = (200, 100, 50)
# (200/255 - .485) / .229, (100/255 - .456) / .224, (50/255 - .406) / .225
NORMALIZED = [1.307046, -0.285014, -0.932985]


def encoded(picture, format: str = "PNG", **options) -> bytes:
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(np.asarray(picture, np.uint8))
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def plain(width: int = 60, height: int = 50) -> Image.Image:
    return Image.new("RGB", (width, height), COLOR)


def photograph(width: int = 500, height: int = 375) -> np.ndarray:
    return load_sample_image("flower.jpg")[:height, :width]


def dataset_of(folder, files: dict, mode: str = "val", text: str | bytes | None = None, **options):
    """A data set whose folder holds these files (name: bytes), listed with labels 0, 1, ..."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if text is None:
        text = "".join(f"{name} {label}\n" for label, name in enumerate(files))
    data = text if isinstance(text, bytes) else text.encode()
    (folder / f"{mode}_list.txt").write_bytes(data)
    return ImageNetDataset(folder, mode, **options)


def pixels_of(image: np.ndarray) -> np.ndarray:
    """The uint8 [H, W, 3] that was normalised, as floats."""
    return np.moveaxis(image * pictures.STD + pictures.MEAN, 0, 2) * 255


JPEG = encoded(photograph(160, 120), "JPEG", quality=90)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + data + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def jpeg_header(width: int, height: int) -> bytes:
    """A sound JPEG but for the size in its frame header."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]
