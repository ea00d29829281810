"""A user's own: folders of pictures, a rewritten reader, other sizes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, error_line, weights
from PIL import Image

import evaluate
import export
import train
from imagenet_reader import ImageNetDataset
from readers import loader
from training import train_state

WEIGHTS = "model-pruned.pdparams"
READER = """
import numpy as np, paddle

class ImageNetDataset(paddle.io.Dataset):
    def __init__(self, data_dir, mode, num_classes=None, seed=0):
        super().__init__()
        assert mode in ("train", "val")
        self.data_dir, self.classes_, self.seed, self.epoch = data_dir, num_classes, seed, 0

    def __len__(self):
        return 12

    def __getitem__(self, i):
        rng = np.random.default_rng((self.seed, self.epoch, i))
        return rng.standard_normal((3, 224, 224)), i % self.classes_  # float64, a plain int
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, whose files a test may rewrite, as a user does."""
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, folder)
        elif (path / "__init__.py").is_file():
            shutil.copytree(path, folder / path.name)
    return folder


def run(project, *words) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_reader_with_nothing_but_what_its_docstring_promises(project, tmp_path):
    (project / "imagenet_reader.py").write_text(READER)
    data = ["--data", "imagenet", "--data_dir", tmp_path, "--num_classes", 3]
    options = ["train.py", *data, "--scale", "0.25", "--batch_size", 4, "--num_workers", 2,
               "--use_pretrained", "false", "--model_path", tmp_path / "models"]  # fmt: skip
    run(project, *options, "--max_steps", 2)
    run(project, *options, "--num_epochs", 1, "--resume_epoch", "latest")
    printed = run(project, "evaluate.py", "--pruned_model", tmp_path / "models", *data, "--json")
    assert json.loads(printed)["samples"] == 12
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--pruned_model", tmp_path / "models", "--predict",
         ROOT / "results" / "results.png"], cwd=project, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("imagenet_reader.py has no function to_input")
    done = subprocess.run(
        [sys.executable, "train.py", *map(str, data), "--image_size", "96", "--use_pretrained",
         "false", "--model_path", tmp_path / "other"], cwd=project, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("imagenet_reader.py has no argument image_size")


@pytest.mark.parametrize("data", ["digits", "voc"])
def test_other_data_sets_do_not_load_a_reader_that_is_being_rewritten(
    data, project, voc_dir, tmp_path
):
    (project / "imagenet_reader.py").write_text("raise SystemExit('not finished yet')\n")
    more = ["--data_dir", voc_dir, "--image_size", 64, "--train_sizes", 64, 64]
    options = ["--data", data, "--num_workers", 0, *(more if data == "voc" else [])]
    run(project, "train.py", *options, "--scale", "0.25", "--batch_size", 2, "--max_steps", 1,
        "--use_pretrained", "false", "--model_path", tmp_path)  # fmt: skip
    run(project, "evaluate.py", "--pruned_model", tmp_path, *options[: 4 + 2 * (data == "voc")])


# A folder a class


def put(folder, *names: str) -> None:
    """Grey pictures of 40x32 by these names."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (40 * i % 256,) * 3).save(path)


@pytest.fixture
def folders(tmp_path):
    """Three classes, with all that lies around in such folders."""
    root = tmp_path / "root"
    put(root / "train", "b/1.jpg", "b/2.PNG", "a/3.jpeg", "c/deeper/4.webp", "c/5.bmp",
        ".ipynb_checkpoints/6.jpg", "a/.hidden.jpg", "a/.cache/7.jpg")  # fmt: skip
    put(root / "val", "c/1.jpg", "c/2.jpg", "b/3.jpg")
    for name in ("train/readme.txt", "train/a/Thumbs.db", "val/notes.csv"):
        (root / name).write_text("no picture")
    return root


def listed(dataset) -> list[tuple[str, int]]:
    return [(dataset.paths[i].decode(), int(dataset.labels[i])) for i in range(len(dataset))]


def test_folders_are_labelled_in_the_order_of_their_names(folders):
    dataset = ImageNetDataset(folders, "train", image_size=16)
    assert dataset.classes == ["a", "b", "c"]
    assert listed(dataset) == [
        ("train/a/3.jpeg", 0), ("train/b/1.jpg", 1), ("train/b/2.PNG", 1),
        ("train/c/5.bmp", 2), ("train/c/deeper/4.webp", 2),
    ]  # fmt: skip
    assert dataset[4][0].shape == (3, 16, 16)
    # Not those of val/ alone, where the first class has no picture:
    expected = [("val/b/3.jpg", 1), ("val/c/1.jpg", 2), ("val/c/2.jpg", 2)]
    assert listed(ImageNetDataset(folders, "val")) == expected
    shutil.rmtree(folders / "train")
    assert ImageNetDataset(folders, "val").classes == ["b", "c"]
    dataset = ImageNetDataset(folders, "val", classes=["a", "b", "c"])  # those of a checkpoint
    assert listed(dataset) == expected


def test_lists_win_over_folders(folders):
    (folders / "val_list.txt").write_text("val/b/3.jpg 7\n")
    dataset = ImageNetDataset(folders, "val", classes=["a", "b", "c"])
    assert listed(dataset) == [("val/b/3.jpg", 7)]
    assert dataset.classes is None
    with pytest.raises(FileNotFoundError, match=r"train_list.txt: No such file"):
        ImageNetDataset(folders, "train")
    (folders / "val_list.txt").unlink()
    (folders / "val_list.txt").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=r"val_list.txt: No such file"):
        ImageNetDataset(folders, "val")


def test_folders_that_are_refused(folders):
    with pytest.raises(ValueError, match="has 3 classes, more than 2; give --num_classes 3"):
        ImageNetDataset(folders, "train", num_classes=2)
    ImageNetDataset(folders, "train", num_classes=3)
    (folders / "train/b/1.jpg").write_text("")
    message = r"train/b/1.jpg: the file is empty; replace or delete the picture$"
    with pytest.raises(ValueError, match=message):
        ImageNetDataset(folders, "train")[1]
    put(folders / "val", "d/1.jpg")
    with pytest.raises(ValueError, match="val/d is none of the 3 classes a, b, c"):
        ImageNetDataset(folders, "val")
    (folders / "train/empty").mkdir()
    with pytest.raises(ValueError, match="train/empty holds no picture"):
        ImageNetDataset(folders, "train")
    shutil.rmtree(folders / "val")
    with pytest.raises(FileNotFoundError, match=r"there is no .*val with a folder a class"):
        ImageNetDataset(folders, "val")
    (folders / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="val has no folder a class"):
        ImageNetDataset(folders, "val")


def options_for(folders, tmp_path, *more) -> list[str]:
    options = ["--data", "imagenet", "--data_dir", folders, "--scale", "0.25", "--batch_size", 2,
               "--num_workers", 0, "--image_size", 32]  # fmt: skip
    return [str(option) for option in [*options, "--model_path", tmp_path / "models", *more]]


def test_the_order_of_the_classes_is_kept_with_the_checkpoint(folders, tmp_path, capfd):
    options = options_for(folders, tmp_path, "--num_classes", 3)
    train.main([*options, "--max_steps", "1"])
    models, data = tmp_path / "models", ["--data_dir", str(folders)]
    assert train_state.read(models).options["classes"] == ["a", "b", "c"]
    capfd.readouterr()
    shutil.copytree(folders / "val", tmp_path / "alone" / "val")  # holds two of the classes
    for place in (folders, tmp_path / "alone"):
        evaluate.main(["--pruned_model", str(models), "--data_dir", str(place), "--json"])
    whole, other = map(json.loads, capfd.readouterr().out.splitlines())
    del whole["images_per_sec"], other["images_per_sec"]
    assert whole == other
    assert whole["samples"] == 3

    put(folders / "train", "0/1.jpg")  # the other classes' labels would move by one
    message = error_line(capfd, train.main, *options, "--num_classes", 4, "--force",
                         "--resume_epoch", "latest")  # fmt: skip
    assert "fc.weight is [256, 3], the model's [256, 4]" in message
    shutil.rmtree(folders / "train/a")
    message = error_line(capfd, train.main, *options, "--resume_epoch", "latest")
    assert (
        "was trained with the classes ['a', 'b', 'c'], the data set has the classes ['0', 'b', 'c']"
        in message
    )
    train.main([*options, "--resume_epoch", "latest", "--force", "--max_steps", "2"])
    put(folders / "val", "z/1.jpg")
    message = error_line(capfd, evaluate.main, "--pruned_model", models, *data)
    assert "val/z is none of the 3 classes 0, b, c" in message


def test_labels_of_a_list_and_of_folders_may_not_be_the_same(folders, tmp_path, capfd):
    lists = tmp_path / "lists"
    shutil.copytree(folders, lists)
    for mode, picture in (("train", "train/b/1.jpg"), ("val", "val/b/3.jpg")):
        (lists / f"{mode}_list.txt").write_text(f"{picture} 0\n{picture} 2\n")
    for place, other, here in (
        (lists, folders, "names here, in training numbers"),
        (folders, lists, "numbers here, in training names"),
    ):
        options = options_for(place, tmp_path / place.name, "--num_classes", 3, "--max_steps", 1)
        train.main(options)
        for data in (place, other):
            evaluate.main(["--pruned_model", options[-5], "--data_dir", str(data)])
        warning = f"warning: classes are {here}: they may not mean the same\n"
        assert capfd.readouterr().err.count(warning) == 1


def test_a_forgotten_number_of_classes_is_said(folders, imagenet_dir, tmp_path, capfd):
    train.main(options_for(folders, tmp_path, "--max_steps", 1))
    found = f"{folders}: 3 classes in the training data, 1000 outputs of the network"
    assert capfd.readouterr().err.count(found) == 1
    assert weights(tmp_path / "models" / WEIGHTS)["fc.bias"].shape == (1000,)
    train.main(options_for(folders, tmp_path, "--max_steps", 1, "--num_classes", 3))
    assert "classes in" not in capfd.readouterr().err
    train.main(options_for(imagenet_dir, tmp_path, "--max_steps", 1))
    assert "4 classes in the training data, 1000 outputs" in capfd.readouterr().err


# Other sizes of pictures


@pytest.mark.parametrize("data", ["imagenet", "cifar10"])
def test_the_size_of_pictures_is_kept_with_the_checkpoint(
    data, folders, cifar_dir, tmp_path, monkeypatch, capfd
):
    sizes, iterate, jit_save = [], loader.Loader.__iter__, export.jit_save

    def spy(self):
        for batch in iterate(self):
            sizes.append(tuple(batch[0].shape[1:]))
            yield batch

    def spy_on_export(model, shape, *others):
        sizes.append(shape)
        jit_save(model, shape, *others)

    monkeypatch.setattr(loader.Loader, "__iter__", spy)
    monkeypatch.setattr(export, "jit_save", spy_on_export)
    place = {"imagenet": folders, "cifar10": cifar_dir}[data]
    options = options_for(place, tmp_path, "--image_size", 48, "--num_classes", 10, "--data", data)
    train.main([*options, "--max_steps", "1"])
    models, place = str(tmp_path / "models"), ["--data_dir", str(place)]
    evaluate.main(["--pruned_model", models, *place])
    out = str(tmp_path / "out")
    export.main(["--pruned_model", models, "--format", "paddle", "--out", out])
    evaluate.main(["--pruned_model", out, "--runtime", "paddle", *place])
    assert set(sizes) == {(3, 48, 48)}
    message = error_line(capfd, evaluate.main, "--pruned_model", out, "--runtime", "paddle", *place,
                         "--image_size", 64)  # fmt: skip
    assert message.endswith("was exported for pictures of 48x48; leave it out")
    evaluate.main(["--pruned_model", models, *place, "--image_size", "64"])
    assert sizes[-1] == (3, 64, 64)
    other = ["--pruned_model", models, "--image_size", "64", "--format", "paddle", "--out"]
    message = error_line(capfd, export.main, *other, out)
    assert message.endswith("holds exports for pictures of 48x48; give another folder")
    export.main([*other, f"{out}64"])
    sizes.clear()
    evaluate.main(["--pruned_model", f"{out}64", "--runtime", "paddle", *place])
    assert set(sizes) == {(3, 64, 64)}


def test_a_test_picture_keeps_the_margin_of_224_in_256(tmp_path):
    """Of 64 columns those from 4 on: resized to 64 = 56 * 256 / 224, the middle 56."""
    columns = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.fromarray(columns).save(tmp_path / "val" / "a" / "1.png")
    image, _ = ImageNetDataset(tmp_path, "val", image_size=56)[0]
    red = image[0, 0] * 0.229 * 255 + 0.485 * 255
    np.testing.assert_allclose(red, np.arange(4, 60), atol=0.01)


def test_sizes_that_do_not_fit(folders, small, tmp_path, capfd):
    options = options_for(folders, tmp_path, "--model", "alexnet", "--scale", 1,
                          "--use_pretrained", "false")  # fmt: skip
    assert "alexnet does not take pictures of 32x32" in error_line(capfd, train.main, *options)
    for size in (0, 4097):
        message = error_line(capfd, train.main, *small, "--image_size", size)
        assert "--image_size: must be a whole number in [1, 4096]" in message


def test_training_from_weights_for_another_number_of_classes(folders, small, tmp_path, capfd):
    first, second = tmp_path / "first", tmp_path / "models"
    train.main([*small, "--max_steps", "1", "--ratio", "0.6", "--model_path", str(first)])
    capfd.readouterr()
    options = options_for(folders, tmp_path, "--num_classes", 3, "--pretrained_model", first)
    train.main([*options, "--max_steps", "1", "--pruning_mode", "none", "--lr", "0"])
    line = f"{first / WEIGHTS} is for another number of classes: fc.weight, fc.bias not loaded"
    assert f"{line}, but random\n" in capfd.readouterr().err
    before, after = weights(first / WEIGHTS), weights(second / WEIGHTS)
    assert np.array_equal(after["conv1.0.weight"], before["conv1.0.weight"])
    train.main([*options, "--max_steps", "1", "--static_masks"])
    assert f"{line}, but random and dense\n" in capfd.readouterr().err
    after = weights(second / WEIGHTS)
    assert np.count_nonzero(after["fc.weight"]) == after["fc.weight"].size == 256 * 3
    for name in before:
        if before[name].ndim == 4:
            assert np.array_equal(before[name] == 0, after[name] == 0)
