"""The formats that the ImageNet reader takes, and pictures that are none."""

from __future__ import annotations

import io
import pickle
import queue
import re
import threading
import tracemalloc

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image
from small_pictures import (
    COLOR,
    JPEG,
    NORMALIZED,
    dataset_of,
    encoded,
    jpeg_header,
    photograph,
    pixels_of,
    plain,
    png_header,
)

from readers import pictures

# Everything that Pillow can read is RGB

GREY16 = Image.fromarray(np.full((50, 60), 100 * 257, np.uint16))
TOO_LIGHT = Image.fromarray(np.full((50, 60), 70000, np.int32))
PALETTE = Image.new("P", (60, 50), 1)
PALETTE.putpalette([9, 9, 9, *COLOR, 0, 0, 0, 255, 255, 255])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(plain()), COLOR, id="png"),
        pytest.param(encoded(plain(), "JPEG", quality=95), COLOR, id="jpeg"),
        pytest.param(
            encoded(plain(), "JPEG", quality=95, progressive=True), COLOR, id="progressive"
        ),
        pytest.param(encoded(plain().convert("CMYK"), "JPEG", quality=95), COLOR, id="cmyk jpeg"),
        pytest.param(encoded(plain().convert("L"), "JPEG", quality=95), (124,) * 3, id="grey jpeg"),
        pytest.param(encoded(plain().convert("L")), (124,) * 3, id="grey png"),
        pytest.param(encoded(plain().convert("LA")), (124,) * 3, id="grey and alpha"),
        pytest.param(encoded(Image.new("1", (60, 50), 1)), (255,) * 3, id="one bit"),
        pytest.param(encoded(GREY16), (100,) * 3, id="16-bit grey png"),
        pytest.param(encoded(GREY16, "TIFF"), (100,) * 3, id="16-bit grey tiff"),
        pytest.param(encoded(GREY16, "PPM"), (100,) * 3, id="16-bit grey pgm"),
        pytest.param(encoded(TOO_LIGHT, "TIFF"), (255,) * 3, id="32-bit grey tiff"),
        pytest.param(encoded(plain().convert("RGBA")), COLOR, id="rgba"),
        pytest.param(encoded(PALETTE), COLOR, id="palette"),
        pytest.param(encoded(PALETTE, transparency=b"\0\x80"), COLOR, id="transparent palette"),
        pytest.param(encoded(PALETTE, "GIF"), COLOR, id="gif"),
        pytest.param(encoded(plain(), "BMP"), COLOR, id="bmp"),
        pytest.param(encoded(plain(), "TIFF"), COLOR, id="tiff"),
        pytest.param(encoded(plain(), "PPM"), COLOR, id="ppm"),
        pytest.param(encoded(plain(), "WEBP", lossless=True), COLOR, id="webp"),
    ],
)
def test_odd_formats_are_read_as_rgb(tmp_path, data, expected):
    dataset = dataset_of(tmp_path, {"odd.JPEG": data}, image_size=32)
    pixels = pixels_of(dataset[0][0])
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=2.01)


def test_16_bit_rgb(tmp_path):
    bgr = np.broadcast_to(np.uint16([50, 100, 200]) * 257, (50, 60, 3))
    dataset = dataset_of(tmp_path, {"a.JPEG": cv2.imencode(".png", bgr)[1].tobytes()})
    np.testing.assert_allclose(dataset[0][0].mean((1, 2)), NORMALIZED, atol=1e-4)


def test_jpegs_are_decoded_as_pillow_does():
    np.testing.assert_array_equal(pictures.decode(JPEG), np.asarray(Image.open(io.BytesIO(JPEG))))
    fast, exact = pictures.decode(JPEG, fast=True), pictures.decode(JPEG)
    assert 0 < np.abs(fast.astype(int) - exact).mean() < 3


def with_wrong_scan_parameters(jpeg: bytes) -> bytes:
    """The end of the spectrum, the last but one byte of the scan's header, is not the usual 63."""
    start = jpeg.index(b"\xff\xda") + 2
    length = int.from_bytes(jpeg[start : start + 2], "big")
    return jpeg[: start + length - 2] + b"\x3e" + jpeg[start + length - 1 :]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG[:-2] + bytes(9) + JPEG[-2:], id="stray bytes before the end"),
        pytest.param(JPEG.replace(b"\xff\xdb", b"\0\0\xff\xdb", 1), id="stray bytes in the header"),
        pytest.param(JPEG + b"more" * 99, id="something after the end"),
        pytest.param(with_wrong_scan_parameters(JPEG), id="wrong scan parameters"),
    ],
)
def test_harmless_faults_of_jpegs_are_passed_over(tmp_path, data):
    dataset = dataset_of(tmp_path, {"a.JPEG": data, "good.JPEG": JPEG})
    np.testing.assert_array_equal(dataset[0][0], dataset[1][0])


# Pictures that are none


HALF = len(JPEG) // 2
PNG = encoded(photograph(60, 50))
BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a picture at all", "not a picture in one of the formats JPEG, PNG"),
    "another format": (encoded(plain(), "PCX"), "not a picture in one of the formats JPEG, PNG"),
    "only a jpeg's start": (JPEG[:10], "not a readable picture"),
    "jpeg cut in the header": (JPEG[:300], "not a readable picture"),
    "jpeg cut before the pixels": (JPEG[: JPEG.index(b"\xff\xda") + 14], "end of JPEG file"),
    "jpeg cut in half": (JPEG[:HALF], "Premature end of JPEG file"),
    "jpeg without its last byte": (JPEG[:-1], "Premature end of JPEG file"),
    "jpeg whose second half is zeros": (JPEG[:HALF] + bytes(HALF), "Premature end of JPEG file"),
    "jpeg cut in half and ended": (JPEG[:HALF] + b"\xff\xd9", "premature end of data segment"),
    "stray bytes, then cut": (
        JPEG[:HALF].replace(b"\xff\xdb", b"\0\0\xff\xdb", 1),
        "not a readable picture .*truncated",
    ),
    "png cut in half": (PNG[: len(PNG) // 2], "not a readable picture .*truncated"),
    "png with a wrong byte": (PNG[:900] + b"\0\0" + PNG[902:], "not a readable picture"),
    "gif cut in half": (encoded(photograph(60, 50), "GIF")[:1000], "not a readable picture"),
    "tiff cut in half": (encoded(photograph(60, 50), "TIFF")[:4000], "not a readable picture"),
    "huge jpeg": (jpeg_header(60000, 60000), "60000 x 60000 is too large, at most 89478485"),
    "large jpeg": (jpeg_header(9500, 9500), "9500 x 9500 is too large"),
    "large png": (png_header(9500, 9500), "9500 x 9500 is too large"),
    "huge png": (png_header(60000, 60000), "3600000000 pixels"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused(tmp_path, mode, name):
    data, message = BROKEN[name]
    text = "good.png 0\n\nbad one.JPEG 1\n"
    dataset = dataset_of(tmp_path, {"good.png": encoded(plain()), "bad one.JPEG": data}, mode, text)
    dataset[0]
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        dataset[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = str(caught.value)
    assert found.startswith(f"{tmp_path / 'bad one.JPEG'}: ")
    assert found.endswith(f"; replace the picture or delete line 3 of {dataset.list_file}")
    assert "\n" not in found
    assert str(pickle.loads(pickle.dumps(caught.value))) == found
    assert peak < 20e6


def test_missing_pictures_are_refused(tmp_path):
    text = b"gone.JPEG 0\nfolder 1\nzero\0byte.JPEG 2\n"
    (tmp_path / "folder").mkdir()
    dataset = dataset_of(tmp_path, {}, text=text)
    reasons = ["No such file or directory", "Is a directory", "embedded null byte"]
    for i, reason in enumerate(reasons):
        with pytest.raises(FileNotFoundError, match=f"{reason}; .* line {i + 1} of") as caught:
            dataset[i]
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'gone.JPEG'}: No such")):
        dataset[0]


def fault_of(loader, monkeypatch) -> BaseException:
    """What a worker's fault becomes here: Paddle raises it in the thread that gathers batches.

    The loop over the loader meets a SystemError only ("Blocking queue is killed"). It is not kept,
    as its traceback holds the iterator, and so the workers, alive.
    """
    faults = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda caught: faults.put(caught.exc_value))
    met = ""
    try:
        list(loader)
    except SystemError as error:
        met = str(error)
    assert "data reader raises an exception" in met
    return faults.get(timeout=30)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_a_fault_in_a_worker_arrives_with_the_name_of_the_file(tmp_path, monkeypatch, error):
    files = {f"{i}.png": encoded(plain()) for i in range(6)}
    dataset = dataset_of(tmp_path, {**files, "bad one.JPEG": JPEG[:HALF]}, "train", image_size=8)
    if error is FileNotFoundError:
        (tmp_path / "bad one.JPEG").unlink()
    loader = paddle.io.DataLoader(dataset, batch_size=2, num_workers=2, use_shared_memory=False)
    fault = fault_of(loader, monkeypatch)
    assert type(fault) is error
    assert re.search(r"bad one\.JPEG: .* line 7 of .*train_list\.txt$", str(fault).strip())
