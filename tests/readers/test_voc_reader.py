from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from readers import pictures, voc_augment
from readers.voc import VOCDataset, read_annotation
from readers.voc_augment import Sample

RED, BLUE = (250, 10, 10), (10, 10, 250)


def write(folder, name="a", body="", size=(40, 30), split="trainval"):
    """A picture of width and height `size`, its annotation, and its line in a list."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / "JPEGImages" / f"{name}.jpg")
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    path = folder / "Annotations" / f"{name}.xml"
    path.write_text(f"<annotation>{size}{body}</annotation>")
    with open(folder / "ImageSets" / "Main" / f"{split}.txt", "a") as file:
        file.write(f"{name}\n")
    return path


def entry(name="dog", xmin=1, ymin=1, xmax=10, ymax=20, more="") -> str:
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def names(folder, mode):
    return [name for _, name in VOCDataset(folder, mode).names]


def test_the_splits_of_both_years(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        for split in ("train", "val", "trainval"):
            write(tmp_path / year, f"{year}{split}", entry(), split=split)
    assert names(tmp_path, "train") == ["VOC2007train", "VOC2012train"]
    assert names(tmp_path, "val") == ["VOC2007val", "VOC2012val"]
    write(tmp_path / "VOC2007", "tested", entry(), split="test")
    assert names(tmp_path, "train") == ["VOC2007trainval", "VOC2012trainval"]
    write(tmp_path / "VOC2012", "without boxes", split="test")
    (tmp_path / "VOC2012" / "Annotations" / "without boxes.xml").unlink()
    assert names(tmp_path, "val") == ["tested"]


def test_a_folder_of_ones_own(tmp_path):
    write(tmp_path, "a", entry("cat"), split="train")
    write(
        tmp_path, "b c", entry("rat", more="<difficult>1</difficult>") + entry("cat"), split="val"
    )
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\ufeffa  1\n\n")  # a class's flag
    (tmp_path / "label_list.txt").write_text("rat\n\ncat\n", encoding="utf-8")
    (tmp_path / "JPEGImages" / "b c.jpg").unlink()
    Image.new("RGB", (40, 30), RED).save(tmp_path / "JPEGImages" / "b.png")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    (tmp_path / "Annotations" / "b c.xml").rename(tmp_path / "Annotations" / "b.xml")
    assert VOCDataset(tmp_path, "train").objects[0].labels.tolist() == [1]
    tested = VOCDataset(tmp_path, "val", image_size=64)
    objects = tested.objects[0]
    assert objects.labels.tolist() == [0, 1]
    assert objects.difficult.tolist() == [True, False]
    assert objects.boxes.tolist() == [[0, 0, 10, 20]] * 2  # VOC's pixels count from 1
    image, size, index = tested[0]
    assert (image.shape, size.tolist(), int(index)) == ((3, 64, 64), [30, 40], 0)
    wanted = (np.array(RED) / 255 - pictures.MEAN.ravel()) / [0.229, 0.224, 0.225]
    assert image[:, 32, 32] == pytest.approx(wanted, abs=0.01)


def test_pictures_without_objects_are_backgrounds(tmp_path):
    write(tmp_path, "a", "", split="train")
    write(tmp_path, "b", entry(), split="val")
    image, boxes, labels, weights = VOCDataset(tmp_path, "train")[0, 96]
    assert image.shape == (3, 96, 96)
    assert not boxes.any()
    assert not labels.any()
    assert not weights.any()


def test_fractions_and_a_pixel_too_many_are_put_right(tmp_path):
    path = write(tmp_path, "a", entry(xmin=0, ymin=1.5, xmax=41, ymax=30.25))
    assert read_annotation(str(path), ["dog"]).boxes.tolist() == [[0, 0.5, 40, 30]]


@pytest.mark.parametrize("mode", ["train", "val"])
def test_boxes_without_a_size_are_checked_against_the_picture(mode, tmp_path):
    path = write(tmp_path, "a", entry(xmin=0, ymin=2, xmax=41, ymax=30), split=mode)
    path.write_text(path.read_text().replace("<width>40", "<width>0"))
    dataset = VOCDataset(tmp_path, mode)
    assert dataset.pixels(0).shape == (30, 40, 3)
    assert dataset.objects[0].boxes.tolist() == [[0, 1, 40, 30]]
    for corner in (42, 9_000_000):
        path.write_text(f"<annotation>{entry(xmax=corner)}</annotation>")
        with pytest.raises(ValueError, match=r"a\.jpg: object 1: its box leaves the picture"):
            VOCDataset(tmp_path, mode)[0]


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("size", [(10_001, 1), (1, 10_001)])
def test_very_long_pictures_are_refused(size, mode, tmp_path):
    write(tmp_path, "a", entry(xmax=1, ymax=1), size=size, split=mode)
    with pytest.raises(ValueError, match="10,001 pixels are too long"):
        VOCDataset(tmp_path, mode)[0]


BROKEN = {
    "its box leaves the picture": entry(xmax=44),
    "its box leaves the picture ": entry(xmin=-3),
    "its box leaves the picture  ": entry(xmin=100, xmax=200),
    "its box has no area": entry(xmin=11, xmax=10),
    "its box has no area ": entry(ymin=21, ymax=20),
    "its box has no area  ": entry(xmin=41, xmax=41),
    "its box has no area   ": entry(xmin=0, xmax=0),
    "difficult is 'true', not 0 or 1": entry(more="<difficult>true</difficult>"),
    "no ymax that is a number": entry(ymax="wide"),
    "no ymax that is a number, but 'nan'": entry(ymax="nan"),
    "no ymax that is a number, but '1e999'": entry(ymax="1e999"),
    "of unknown class 'hippo'": entry("hippo"),
    "has no bndbox": "<object><name>dog</name></object>",
    "it is no XML": "<object>",
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_annotation_is_named(reason, tmp_path):
    path = write(tmp_path, "a", BROKEN[reason])
    with pytest.raises(ValueError, match=reason.strip()) as error:
        read_annotation(str(path), ["dog"])
    assert str(path) in str(error.value)


def test_bombs_are_refused_unopened(tmp_path):
    path = tmp_path / "a.xml"
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 20))
    for text, reason in {
        f'<!DOCTYPE a [<!ENTITY a0 "ha">{entities}]><annotation>&a19;</annotation>': "entities",
        "<annotation><!ENTITY a SYSTEM 'file:///etc/passwd'></annotation>": "entities",
        "<annotation>" + " " * (1 << 20) + "</annotation>": "more than 1,048,576 bytes",
        "<a>" * 300_000: "no XML",
        "<html></html>": "no annotation, but 'html'",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_annotation(str(path), ["dog"])
    path.write_bytes("<annotation>&#233;</annotation>".encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-8"):
        read_annotation(str(path), ["dog"])
    deep = "<a>" * 100_000 + "</a>" * 100_000
    path.write_text(f"<annotation>{deep}</annotation>")
    assert read_annotation(str(path), ["dog"]).labels.tolist() == []


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no data folder"):
        VOCDataset(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"train\.txt is missing or empty"):
        VOCDataset(tmp_path, "train")
    path = write(tmp_path, "a", entry(), split="train")
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing or empty"):
        VOCDataset(tmp_path, "val")
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg is missing; .*take a off the list"):
        VOCDataset(tmp_path, "train")
    Image.new("RGB", (30, 40)).save(tmp_path / "JPEGImages" / "a.jpg")
    with pytest.raises(ValueError, match="30 x 40 pixels, its annotation says 40 x 30"):
        VOCDataset(tmp_path, "train")[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.xml"):
        VOCDataset(tmp_path, "train")
    write(tmp_path, "b", entry(more="<difficult>1</difficult>"), split="val")
    with pytest.raises(ValueError, match="nothing to measure"):
        VOCDataset(tmp_path, "val")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\a", "a\0b"])
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    write(tmp_path, "a", entry(), split="train")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{name}\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: .* is no name of a picture"):
        VOCDataset(tmp_path, "train")


@pytest.mark.parametrize("text", ["", "a\nb\na\n", "\n".join(map(str, range(25_000)))])
def test_a_label_list_is_short_and_has_each_name_once(text, tmp_path):
    write(tmp_path, "a", entry(), split="train")
    (tmp_path / "label_list.txt").write_text(text)
    with pytest.raises(ValueError, match=r"one name a line|more than 131,072 bytes"):
        VOCDataset(tmp_path, "train")


def scene(seed: int) -> Sample:
    """Noise without colour, 90 wide and 60 high, with a red and a blue rectangle."""
    rng = np.random.default_rng(seed)
    pixels = np.repeat(rng.integers(60, 160, (60, 90, 1), dtype=np.uint8), 3, 2)
    boxes = np.float32([[10, 5, 40, 30], [50, 20, 85, 55]])
    for box, colour in zip(boxes.astype(int), (RED, BLUE)):
        pixels[box[1] : box[3], box[0] : box[2]] = colour
    return Sample(pixels, boxes, np.int32([0, 1]), np.ones(2, np.float32))


def coloured(pixels: np.ndarray, label: int) -> np.ndarray:
    """Corners of the region in which red or blue is clearly the largest."""
    others = np.delete(pixels, (0, 2)[label], 2).max(2).astype(int)
    ys, xs = np.nonzero(pixels[..., (0, 2)[label]] > others + 60)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@pytest.mark.parametrize("name", ["distort", "expand", "crop", "flip"])
def test_boxes_stay_on_their_objects(name):
    changed, seen = 0, set()
    for seed in range(60):
        before, rng = scene(seed), np.random.default_rng(seed)
        kept = Sample(*(part.copy() for part in before))
        after = getattr(voc_augment, name)(before, rng)
        for part, copy in zip(before, kept):
            assert (part == copy).all()  # what was given is not written to
        for box, label, weight in zip(after.boxes, after.labels, after.weights):
            assert box == pytest.approx(coloured(after.pixels, label), abs=1), (seed, label)
            assert weight == 1
        assert after.pixels.dtype == np.uint8
        changed += (
            after.pixels.shape != before.pixels.shape or (after.pixels != before.pixels).any()
        )
        seen.add(len(after.boxes))
        again = getattr(voc_augment, name)(kept, np.random.default_rng(seed))
        assert all((left == other).all() for left, other in zip(after, again))
    assert 15 < changed <= 60
    assert seen == ({1, 2} if name == "crop" else {2})


def test_expand_puts_pictures_on_the_mean_colour():
    for seed in range(9):
        after = voc_augment.expand(scene(0), np.random.default_rng(seed)).pixels
        if after.shape[0] > 90:
            corners = after[[0, 0, -1, -1], [0, -1, 0, -1]]
            assert (corners == [124, 116, 104]).all(1).any()  # 255 times ImageNet's mean
            assert after.shape[0] / 60 == pytest.approx(after.shape[1] / 90, rel=0.02)
            assert after.shape[0] <= 4 * 60
            return
    pytest.fail("never expanded")


def test_crop_overlaps_a_box_as_much_as_it_should():
    shares = set()
    for seed in range(200):
        after = voc_augment.crop(scene(0), np.random.default_rng(seed))
        least = np.random.default_rng(seed).choice([-1.0, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
        if after.pixels.shape == (60, 90, 3):
            continue
        areas = (after.boxes[:, 2:] - after.boxes[:, :2]).prod(1)
        assert len(areas) > 0
        full = (scene(0).boxes[after.labels, 2:] - scene(0).boxes[after.labels, :2]).prod(1)
        window = after.pixels.shape[0] * after.pixels.shape[1]
        assert (areas / (window + full - areas)).max() >= least
        shares.add(least)
    assert {0.0, 0.1, 0.3} <= shares


def test_mixup_lays_pictures_over_each_other():
    left, other = scene(0), scene(1)
    other = Sample(other.pixels[:50, :80], other.boxes, other.labels, other.weights)
    mixed = voc_augment.mixup(left, other, 0.25)
    assert mixed.pixels.shape == (60, 90, 3)
    assert mixed.pixels[10, 20].tolist() == pytest.approx(RED, abs=1)  # red in both
    assert mixed.pixels[59, 89].tolist() == pytest.approx(left.pixels[59, 89] * 0.25, abs=1)
    assert mixed.weights.tolist() == [0.25, 0.25, 0.75, 0.75]
    assert mixed.labels.tolist() == [0, 1, 0, 1]
    assert (mixed.boxes == np.concatenate([left.boxes, other.boxes])).all()


def test_targets():
    image, boxes, labels, weights = voc_augment.target(scene(0), 64)
    assert image.shape == (3, 64, 64)
    assert boxes[0] == pytest.approx([25 / 90, 17.5 / 60, 30 / 90, 25 / 60])
    assert (labels[:2].tolist(), weights[:2].tolist()) == ([0, 1], [1, 1])
    assert not boxes[2:].any()
    assert not weights[2:].any()
    crowd = Sample(scene(0).pixels, np.tile(scene(0).boxes, (40, 1)), np.ones(80, np.int32),
                   np.ones(80, np.float32))  # fmt: skip
    assert voc_augment.target(crowd, 64)[1].shape == (50, 4)


def test_a_sample_depends_on_seed_epoch_and_number_alone(voc_dir):
    dataset = VOCDataset(voc_dir, "train", mixup_epochs=1)
    first = dataset[3, 64]
    dataset[4, 96]
    assert all((a == b).all() for a, b in zip(first, dataset[3, 64]))
    assert len(set(first[3][first[3] > 0])) == 2  # two weights: mixup
    shares = {dataset[i, 64][3].max() for i in range(9)}  # drawn from Beta(1.5, 1.5)
    assert len(shares) == 9
    assert min(shares) >= 0.5
    dataset.names[4], dataset.objects[4] = dataset.names[3], dataset.objects[3]
    assert not (dataset[3, 64][0] == dataset[4, 64][0]).all()  # one picture, two samples
    dataset.epoch = 1
    other = dataset[3, 64]
    assert not (first[0] == other[0]).all()
    assert set(other[3]) == {0, 1}  # no mixup any more
    assert not (
        VOCDataset(voc_dir, "train", seed=1)[3][0] == VOCDataset(voc_dir, "train")[3][0]
    ).all()
    plain = VOCDataset(voc_dir, "train", augmentation="flip", mixup_epochs=9, image_size=64)
    pixels = plain.pixels(3)
    flipped = cv2.flip(pixels, 1)
    wanted = [pictures.normalize(p) for p in (pixels, flipped)]
    for plain.epoch in range(4):
        assert any(np.allclose(plain[3][0], picture) for picture in wanted)


def test_large_pictures_are_made_smaller_with_their_boxes(tmp_path):
    write(
        tmp_path,
        "a",
        entry(xmin=1001, xmax=2000, ymin=1, ymax=500),
        size=(2048, 512),
        split="train",
    )
    sample = VOCDataset(tmp_path, "train").sample(0)
    assert sample.pixels.shape == (256, 1024, 3)
    assert sample.boxes.tolist() == [[500, 0, 1000, 250]]
