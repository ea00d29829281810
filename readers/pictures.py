"""Pictures from files: read, decoded, cropped, resized, normalised; every file may be hostile.

Pixels are RGB, uint8 [H, W, 3]. JPEGs are decoded by simplejpeg, everything is resized by OpenCV,
and Pillow reads the rest: one of ImageNet's .JPEGs is a PNG.
"""

from __future__ import annotations

import io
import math
import os
import stat
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# Of ImageNet's RGB, in 0..1.
MEAN = np.float32([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.float32([0.229, 0.224, 0.225]).reshape(3, 1, 1)
AREA = (0.08, 1.0)  # of a random crop, as a part of the picture's (Szegedy et al., 2014)
RATIO = (3 / 4, 4 / 3)  # width / height of a random crop
MAX_PIXELS = 89_478_485  # Pillow's own bound: a quarter of a GiB of RGB
MAX_BYTES = 3 * MAX_PIXELS + (1 << 20)  # of a file: all of them uncompressed, and headers
MAX_EDGE = 10_000  # pixels; of 10,000 x 1 squeeze() makes about 8,000 x 8,000 on its way
MAX_SCANNED = 20 * MAX_PIXELS  # pixels times scans of a JPEG; a progressive one has about 10
FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
)  # that Pillow may decode


def open_file(path: str) -> io.BufferedReader:
    """
    Raises:
        FileNotFoundError: there is none, it cannot be opened, or it is a pipe or a device. The
            message does not name the file.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe, or zeros without end
            raise FileNotFoundError("not a file")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise FileNotFoundError(getattr(error, "strerror", None) or str(error)) from None


def read_file(path: str) -> bytes:
    """
    Raises:
        FileNotFoundError: as `open_file`.
        ValueError: it is larger than any picture that is read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes are too much, at most {MAX_BYTES:,} are read")
        return file.read()


def decode(data: bytes, fast: bool = False) -> np.ndarray:
    """The RGB pixels of a picture, uint8 [H, W, 3]; ordinary JPEGs by simplejpeg.

    `fast` saves a tenth of their time and puts a pixel off by 1 or 2 of 255 on the average.

    Raises:
        ValueError: it is empty, cut short, too large or not a picture.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return decode_with_pillow(data)
    check_size(height, width)
    scans = data.count(b"\xff\xda")
    if height * width * scans > MAX_SCANNED:
        raise ValueError(f"{scans} scans are too many for {width} x {height}")
    try:
        return simplejpeg.decode_jpeg(data, fastdct=fast, fastupsample=fast, strict=True)
    except ValueError as error:
        # A part is missing, which Pillow fills with grey without a word if an end mark follows.
        if "premature end" in str(error).lower():
            raise
        # Other complaints (stray bytes before a marker, ...) are mostly harmless, and Pillow knows.
        return decode_with_pillow(data)


def decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see check_size()
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        with opened as image:
            check_size(image.height, image.width)
            if image.mode.startswith("I"):  # 16-bit grey, which convert() cuts off at 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype("uint8"))
            elif image.mode == "P":
                image = image.convert("RGBA")  # no warning then if some colour is transparent
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise ValueError(f"not a readable picture ({error})") from None


def check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is too large, at most {MAX_PIXELS} pixels are read")


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 or float32 [H, W, 3] to [height, width, 3], bilinear.

    Antialiased where it shrinks: a pixel is then the mean of k x k samples, at most 1.25 pixels
    apart, so that they miss none. As close to Pillow's antialiased resize as OpenCV's INTER_AREA
    is, in a third of its time.
    """
    cv2.setNumThreads(0)  # the loader's workers are the parallelism; it costs nothing to repeat
    step = max(pixels.shape[0] / height, pixels.shape[1] / width)
    k = max(1, math.ceil(step / 1.25))
    pixels = cv2.resize(pixels, (k * width, k * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA) if k > 1 else pixels


def check_edges(height: int, width: int) -> None:
    """Raises ValueError: a picture is too long for squeeze()."""
    if max(height, width) > MAX_EDGE:
        longest = max(height, width)
        raise ValueError(f"{longest:,} pixels are too long, {MAX_EDGE:,} are allowed")


def squeeze(pixels: np.ndarray, size: int) -> np.ndarray:
    """All of a picture resized to [size, size, 3], whatever its ratio; errors of check_edges()."""
    check_edges(*pixels.shape[:2])
    return resize(pixels, size, size)


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part of a picture, its area and ratio in AREA and RATIO."""
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # A long strip, where hardly anything fits: the largest such part in the middle.
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A part of the picture (`random_box`), resized to [size, size, 3]."""
    top, left, height, width = random_box(*pixels.shape[:2], rng)
    return resize(pixels[top : top + height, left : left + width], size, size)


def random_flip(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a probability of 1/2: left and right exchanged."""
    return cv2.flip(pixels, 1) if rng.random() < 0.5 else pixels


def resize_short(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize the short side to `size`; of the long one, at most twice the short one is kept.

    Only the middle square is wanted, and 60000 x 1 pixels would become 15 million x 256.
    """
    height, width = pixels.shape[:2]
    y, x = max(0, (height - 2 * width) // 2), max(0, (width - 2 * height) // 2)
    pixels = pixels[y : height - y, x : width - x]
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    return resize(pixels, round(height * scale), round(width * scale))


def center_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle [size, size, 3] of a picture."""
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def normalize(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float32 [3, H, W], by ImageNet's mean and standard deviation."""
    image = np.stack(cv2.split(pixels)).astype(np.float32)
    image *= 1 / (255 * STD)
    image -= MEAN / STD
    return image
