"""The pruner of docs/rigl.md, as the page shows it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from conftest import error_line
from documents import blocks
from paddle import nn
from pruned_nets import net_of

from results.rigl import main

(PAGE,) = blocks("docs/rigl.md", "python")


@pytest.fixture
def rigl():
    """The class, which the code above its use defines."""
    names = {}
    exec(PAGE.partition("\nmodel = ")[0], names)
    return names["RigLPruner"]


@pytest.mark.parametrize("words", [[], ["--data", "digits"], ["0"], ["1.5"]])
def test_the_steps_until_no_mask_moves_are_the_first_word(words, capfd):
    assert "END, the first word, must be a whole number >= 1" in error_line(capfd, main, *words)


def test_a_gradient_that_is_not_finite(rigl):
    net = net_of([[1, 2, 3, 4, 5, 6, 7, 8]])
    pruner = rigl(net, "ratio", ratio=0.5)
    pruner.step()
    (net.w0 * paddle.to_tensor([[np.nan, np.inf, 1, 0, 0, 0, 0, 0]], dtype="float32")).backward()
    pruner.step()
    assert int(pruner.masks["w0"].sum()) == 4


def test_the_example_is_short_and_runs():
    assert len(PAGE.splitlines()) <= 60
    names = {}
    exec(PAGE, names)
    assert names["pruner"].prunable_sparsity() == pytest.approx(0.9, abs=1e-4)


def test_the_smallest_go_and_the_largest_gradients_come_back(rigl):
    net = net_of([[1, 2, 3, 4, 5, 6, 7, 8]])
    pruner = rigl(net, "ratio", ratio=0.5)
    pruner.FRACTION, pruner.END = 0.5, 4
    pruner.step()
    assert pruner.masks["w0"].numpy().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match=r"w0 has no gradient: call step\(\) before clear_grad"):
        pruner.step()
    moved = []
    for gradient in ([1, 9, 3, 8, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0]) * 2:
        net.clear_gradients()
        (net.w0 * paddle.to_tensor([gradient], dtype="float32")).sum().backward()
        before = pruner.masks["w0"].numpy()
        net.w0.set_value(np.float32([[1, 2, 3, 4, 5, 6, 7, 8]]))
        pruner.step()
        moved.append(int((before != pruner.masks["w0"].numpy()).sum()))
        if len(moved) == 1:  # at step 1 of 4 int(0.43 * 4) = 1 of 4 moves
            assert pruner.masks["w0"].numpy().tolist() == [[0, 1, 0, 0, 0, 1, 1, 1]]
    assert moved == [2, 2, 0, 0]  # steps 1 and 2: int(1.7), int(1.0); 3 and 4: int(0.3), 0


def test_the_sparsity_stays_the_masks_move_and_the_network_learns(rigl):
    paddle.seed(0)
    rng = np.random.default_rng(0)
    inputs = paddle.to_tensor(rng.standard_normal((256, 16)).astype("float32"))
    labels = paddle.to_tensor((inputs[:, :1] * inputs[:, 1:2] > 0).astype("int64"))
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                          nn.Linear(64, 2))  # fmt: skip
    opt = paddle.optimizer.Adam(0.005, parameters=model.parameters())
    pruner = rigl(model, "ratio", ratio=0.8, distribution="erk", prune_period=20, optimizer=opt)
    pruner.END = 300
    kept, changes, losses = [], [], []
    for _ in range(400):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        opt.step()
        before = {name: mask.numpy() for name, mask in pruner.masks.items()}
        pruner.step()
        opt.clear_grad()
        masks = {name: mask.numpy() for name, mask in pruner.masks.items()}
        kept.append([mask.sum() for mask in masks.values()])
        changes.append(sum((before[name] != masks[name]).sum() for name in masks))
        losses.append(float(loss))
    sizes = [mask.size for mask in masks.values()]
    ratios = pruner.layer_ratios().values()
    assert kept == [[n - round(ratio * n) for n, ratio in zip(sizes, ratios)]] * 400
    moving = [step for step, changed in enumerate(changes) if changed]
    assert moving == list(range(0, 300, 20))  # the first masks, and every 20 steps until END
    assert changes[20] > changes[140] > changes[280]
    assert losses[-1] < losses[0] / 3
