"""results/sensitivity.py: the ratios that follow from curves, and the program on small networks."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import paddle
import pytest
from conftest import error_line

import train
from readers.small_images import Cifar10
from readers.voc import VOCDataset
from results import sensitivity
from results.sensitivity import as_option, curve, pruned, ratios_at, ratios_for
from tasks import TASKS
from training import batch_norm
from training.options import parse_training
from training.pruning import distribution
from unstructured_pruner import UnstructuredPruner, prunable_parameters

SIZES = {"a": 100, "b": 300}
CURVES = {"a": curve([0.5, 1.0], [0.1, 0.3]), "b": curve([0.5, 1.0], [0.4, 0.8])}
CPU = ["--use_gpu", "false", "--num_workers", "0"]


@pytest.mark.parametrize(
    ("bound", "a", "b"), [(0.0, 0, 0), (0.05, 0.25, 0.0625), (0.2, 0.75, 0.25), (9, 1, 1)]
)
def test_a_layer_is_pruned_as_far_as_it_costs_the_bound(bound, a, b):
    assert ratios_at(CURVES, bound) == pytest.approx({"a": a, "b": b}, abs=1e-4)


# Cost of a weight: of a 0.002 up to 0.5 and 0.004 from there; of b 0.8 / 300 = 0.0027 throughout.
@pytest.mark.parametrize(
    ("ratio", "a", "b"),
    [(0.1, 0.4, 0), (0.125, 0.5, 0), (0.5, 0.5, 0.5), (0.875, 0.5, 1), (0.9, 0.6, 1), (1, 1, 1)],
)
def test_the_weights_that_cost_the_least_go_first(ratio, a, b):
    assert ratios_for(CURVES, SIZES, ratio) == pytest.approx({"a": a, "b": b})


def test_a_piece_of_a_curve_that_is_steep_is_passed_with_what_follows():
    """c costs 0.2 at once and then nothing: to 1.0 a weight costs 0.002, the half of d's."""
    curves = {"c": curve([0.5, 1.0], [0.2, 0.2]), "d": curve([0.5, 1.0], [0.2, 0.4])}
    sizes = {"c": 100, "d": 100}
    assert ratios_for(curves, sizes, 0.5) == pytest.approx({"c": 1, "d": 0})


@pytest.mark.parametrize(
    ("costs", "bound", "ratio"),
    [
        ([0.2, 0.1], 0.1, 0.25),  # a larger ratio is never taken to cost less
        ([-0.1, 0.1], 1e-6, 0.5),  # nor a smaller one to gain anything
        ([0.1, float("nan")], 5.0, 0.5),
        ([0.1, float("inf")], 5.0, 0.5),
    ],
)
def test_curves_that_do_not_rise(costs, bound, ratio):
    assert ratios_at({"a": curve([0.5, 1.0], costs)}, bound)["a"] == pytest.approx(ratio, abs=1e-4)


def test_the_option_leaves_out_what_is_not_pruned():
    text = as_option({"conv.weight": 0.123456, "fc.weight": 0.00004, "last.weight": 0.75})
    assert text == "conv.weight=0.1235,last.weight=0.75"
    assert distribution(text) == {"conv.weight": 0.1235, "last.weight": 0.75}


def test_the_network_is_restored_bit_for_bit():
    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4))
    odd = net[0].weight.numpy()
    odd.flat[:3] = -0.0, np.nan, 1e-42
    net[0].weight.set_value(odd)
    before = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}

    def interrupted():
        with pruned(net, "0.weight=0.5", None) as sparsity:
            assert sparsity == 0.5
            assert (net[0].weight.numpy() == 0).mean() == 0.5
            batch_norm.measure([net], [[paddle.randn([2, 3, 8, 8])]])
            assert net[1]._mean.numpy().any()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {name: value.numpy().tobytes() for name, value in net.state_dict().items()} == before


def test_pictures_to_train_on_are_prepared_as_in_a_test(cifar_dir, voc_dir):
    test = Cifar10(cifar_dir, "val")
    test.images, test.labels = (
        getattr(Cifar10(cifar_dir, "train"), n) for n in ("images", "labels")
    )
    part = sensitivity.Part(Cifar10(cifar_dir, "train"), 7)
    assert len(part) == 7
    for index, (image, label) in zip(part.indices, (part[i] for i in range(7))):
        np.testing.assert_array_equal(image, test[index][0])
        assert label == test[index][1]

    voc = VOCDataset(voc_dir, "train", image_size=64)
    part = sensitivity.Part(VOCDataset(voc_dir, "train", image_size=64), 4)
    for i, index in enumerate(part.indices):
        np.testing.assert_array_equal(part.objects[int(part[i][2])].boxes, voc.objects[index].boxes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of MobileNetV1 at width 0.1, for digits."""
    paddle.seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pdparams"
    model = paddle.vision.models.mobilenet_v1(scale=0.1, num_classes=10)
    paddle.save(model.state_dict(), str(path))
    return path


def options(weights, out, *more) -> list[str]:
    words = ["--pretrained_model", weights, "--data", "digits", "--scale", 0.1, "--samples", 24,
             "--ratios", 0.5, 0.9, "--out", out, *CPU, *more]  # fmt: skip
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def sizes(weights):
    state = paddle.load(str(weights))
    return {
        n: p.size for n, p in state.items() if isinstance(p, paddle.Tensor) and len(p.shape) > 1
    }


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """The lines of a run without an interruption, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        sensitivity.main(options(weights, out, "--ratio", "0.75"))
    assert {path.name for path in out.iterdir()} == {
        sensitivity.FILE, "sensitivity.png", "sensitivity.svg"
    }  # fmt: skip
    assert "$" not in (out / "sensitivity.svg").read_text()  # TeX, which is shown as it is
    return (out / sensitivity.FILE).read_text(), "\n".join(said).replace(str(out), "OUT")


@pytest.mark.parametrize("tests", [0, 5, 58])
def test_it_goes_on_after_an_interruption(tests, whole, weights, tmp_path, monkeypatch, capfd):
    original, calls, stops = sensitivity.evaluate, [], [tests]

    def counting(*args):
        if len(calls) in stops:
            raise KeyboardInterrupt
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(sensitivity, "evaluate", counting)
    with pytest.raises(SystemExit) as ended:
        sensitivity.main(options(weights, tmp_path, "--ratio", "0.75"))
    assert ended.value.code == 130
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"sensitivity.py: interrupted; {tests} tests are in {tmp_path}")
    stops.clear()
    sensitivity.main(options(weights, tmp_path, "--ratio", "0.75"))
    assert len(calls) == 1 + 28 * 2 + 4  # each once
    assert (tmp_path / sensitivity.FILE).read_text() == whole[0]
    assert capfd.readouterr().out.strip().replace(str(tmp_path), "OUT") == whole[1].strip()


def test_the_tables_have_what_was_measured(whole, sizes):
    settings, *records = map(json.loads, whole[0].splitlines())
    assert settings["samples"] == 24
    found = {(r["distribution"], r["ratio"]): r for r in records}
    alone = found["fc.weight=0.9", None]
    assert alone["sparsity"] == pytest.approx(
        0.9 * sizes["fc.weight"] / sum(sizes.values()), abs=1e-4
    )
    cells = [line.strip("|").split("|") for line in whole[1].splitlines() if line[:1] == "|"]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}
    assert rows["fc.weight"][2] == f"{alone['loss']:.3f}, {alone['top1']:.2%}"
    compared = {text if text in ("uniform", "erk") else "sensitivity": r for (text, _), r in
                list(found.items())[-4:] if text != "global"}  # fmt: skip
    compared["global"] = next(r for (text, ratio), r in found.items() if text == "global" and ratio)
    for name, r in compared.items():
        assert r["sparsity"] == pytest.approx(0.75, abs=0.002)
        assert rows[name] == [f"{r['sparsity']:.2%}", f"{r['loss']:.3f}, {r['top1']:.2%}"]
    best = min(compared, key=lambda name: compared[name]["loss"])
    named = re.search(r"^--distribution (\w+) .* is better here than the one below", whole[1], re.M)
    assert (named[1] if named else "sensitivity") == best


def test_train_takes_the_option(whole, weights, tmp_path):
    words = shlex.split(whole[1].splitlines()[-1])
    assert words[0] == "--distribution"
    ratios = parse_training("", words).distribution
    model = paddle.vision.models.mobilenet_v1(scale=0.1, num_classes=10)
    assert ratios.keys() <= prunable_parameters(model).keys()
    pruner = UnstructuredPruner(model, "ratio", distribution=ratios)
    pruner.step()
    assert pruner.prunable_sparsity() == pytest.approx(0.75, abs=0.005)
    common = ["--data", "digits", "--scale", "0.1", "--max_steps", "1", "--batch_size", "16", *CPU]
    train.main([*common, *words, "--pretrained_model", str(weights),
                "--model_path", str(tmp_path)])  # fmt: skip
    state = json.loads((tmp_path / "train-state.json").read_text())
    assert state["prunable_sparsity"] == pytest.approx(0.75, abs=0.005)


def test_a_bound_on_top1_and_a_detector(voc_dir, tmp_path, capfd):
    paddle.seed(0)
    task = TASKS["voc"]
    words = ["--data", "voc", "--data_dir", str(voc_dir), "--scale", "0.05", "--image_size", "64"]
    args = sensitivity.parse([*words, "--pretrained_model", "x"])
    args.num_classes = 3
    args.model = "yolov3"
    path = tmp_path / "random.pdparams"
    paddle.save(task.make_model(args).state_dict(), str(path))
    sensitivity.main([*words, *CPU, "--pretrained_model", str(path), "--samples", "4",
                      "--ratios", "0.9", "--max_drop", "0.02", "--out", str(tmp_path)])  # fmt: skip
    out = capfd.readouterr().out
    assert "4 training pictures; map_11point with one layer pruned to" in out
    assert out.splitlines()[-1].startswith("--distribution '")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ratio", "0.95"], "--ratio 0.95 must be above 0 and at most the largest of --ratios"),
        (["--ratio", "0"], "--ratio 0 must be above 0 and at most the largest of --ratios"),
        (["--ratio", "0.5", "--max_drop", "0.1"], "not allowed with argument"),
        (["--ratios", "1.5"], "argument --ratios: must be a number in [0.01, 1], got 1.5"),
        (["--max_drop", "2"], "must be a number in [0, 1], got 2; did you mean 0.02?"),
        (["--sampels", "9"], "there is no option --sampels: did you mean --samples?"),
        (["--samples", "20"], "was measured with other samples, pictures; give another --out"),
        (["--pretrained_model", "nowhere"], "there is no nowhere"),
        (["--scale", "0.2"], "does not fit the model"),
        (["--model", "mobilenet_v9"], "did you mean mobilenet_v2?"),
        (["--data_dir", "x"], "--data_dir: --data digits needs no folder"),
    ],
)
def test_what_it_refuses(more, message, whole, weights, tmp_path, capfd):
    (tmp_path / sensitivity.FILE).write_text(whole[0])
    assert message in error_line(capfd, sensitivity.main, *options(weights, tmp_path, *more))
    assert (tmp_path / sensitivity.FILE).read_text() == whole[0]


def test_other_weights_and_damage_are_refused(whole, weights, tmp_path, capfd):
    (tmp_path / sensitivity.FILE).write_text(whole[0])
    other = tmp_path / "other.pdparams"
    state = paddle.load(str(weights))
    state["fc.bias"] += 1
    paddle.save(state, str(other))
    message = error_line(capfd, sensitivity.main, *options(other, tmp_path))
    assert message.endswith("measured with other weights; give another --out, or move it away")
    state["fc.bias"] *= float("nan")
    paddle.save(state, str(other))
    message = error_line(capfd, sensitivity.main, *options(other, tmp_path / "new"))
    assert message.endswith("unpruned")
    for damaged in ("", "{", "1\n", '{"weights": 1}\n{}\n'):
        (tmp_path / sensitivity.FILE).write_text(damaged)
        message = error_line(capfd, sensitivity.main, *options(weights, tmp_path))
        assert message.endswith(f"{sensitivity.FILE} is damaged; move it away")
