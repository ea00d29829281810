"""The k-th magnitude of many weights, which is found from a sample."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from pruned_nets import DTYPES, N, layouts, net_of, sorted_masks, stepped, values_of

from unstructured_pruner import UnstructuredPruner
from unstructured_pruning import host, masking, sampling

RATIOS = [1 / N, 0.0005, 0.3, 0.55, 0.9, 0.9995, 1 - 1 / N]


@pytest.mark.parametrize("layout", list(layouts()))
def test_large_weights_get_the_masks_of_a_plain_sort(layout):
    values = layouts()[layout].astype("float32")
    first, second = values[:100_000].reshape(100, 1000), values[100_000:].reshape(1, -1)
    net = net_of(first, second)
    pruner = UnstructuredPruner(net, "ratio")
    for ratio in RATIOS:
        pruner.ratio = ratio
        net.w0.set_value(first)
        net.w1.set_value(second)
        pruner.step()
        for name, wanted, before in zip(
            pruner.masks, sorted_masks([first, second], ratio), (first, second)
        ):
            np.testing.assert_array_equal(pruner.masks[name].numpy(), wanted, str(ratio))
            after = net.state_dict()[name].numpy()
            np.testing.assert_array_equal(after, np.where(wanted, before, 0), str(ratio))


@pytest.fixture
def small_sample(monkeypatch):
    """A sample of about 64 weights: its bracket often misses, as it rarely does at full size."""
    monkeypatch.setattr(sampling, "stride", lambda total: total // 64 | 1)
    monkeypatch.setattr(host, "PIECE", 100)


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_every_count_is_exact_from_a_poor_sample(dtype, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 700, 4)
    net = net_of(*[rng.standard_normal((1, n)) for n in sizes], dtype=dtype)
    arrays = [values_of(p) for p in net.parameters()]  # as rounded to the dtype
    pruner = UnstructuredPruner(net, "ratio")
    for ratio in np.linspace(0, 1, 41):
        pruner.ratio = ratio
        for parameter, values in zip(net.parameters(), arrays):
            paddle.assign(paddle.to_tensor(values).astype(dtype), output=parameter)
        pruner.step()
        for mask, wanted in zip(pruner.masks.values(), sorted_masks(arrays, ratio)):
            np.testing.assert_array_equal(mask.numpy(), wanted)


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("on_cpu", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("values", ["ties", "nan and infinity"])
@pytest.mark.parametrize("block", [(1, 4), (3, 5)])
def test_blocks_that_differ_in_size_from_a_poor_sample(monkeypatch, block, values, on_cpu):
    monkeypatch.setattr(masking, "on_cpu", lambda *tensors: on_cpu)
    rng = np.random.default_rng(0)
    arrays = [np.round(4 * rng.standard_normal(shape)) / 4 for shape in ((50, 9), (7, 90), (31, 1))]
    if values != "ties":
        for array in arrays:
            array[rng.random(array.shape) < 0.01] = np.nan
            array[rng.random(array.shape) < 0.1] = np.inf
    rows, columns = block
    places = [
        (i, np.s_[top : top + rows, left : left + columns])
        for i, array in enumerate(arrays)
        for top in range(0, array.shape[0], rows)
        for left in range(0, array.shape[1], columns)
    ]
    blocks = [np.abs(arrays[i][where]) for i, where in places]
    means, sizes = np.float32([b.sum() / b.size for b in blocks]), [b.size for b in blocks]
    order = np.argsort(means, kind="stable")  # NaN comes last, and is kept
    for ratio in np.linspace(0, 1, 21):
        pruner = stepped(net_of(*arrays), "ratio", ratio=ratio, sparse_block=block)
        keep, room = [np.ones(a.shape, bool) for a in arrays], round(ratio * sum(sizes))
        for rank in order[~np.isnan(means[order])]:
            room -= sizes[rank]
            if room < 0:
                break
            keep[places[rank][0]][places[rank][1]] = False
        for mask, wanted in zip(pruner.masks.values(), keep):
            np.testing.assert_array_equal(mask.numpy(), wanted, str(ratio))


@pytest.mark.parametrize(
    ("layout", "passes"),
    [("normal", 1), ("sixty_percent_zeros", 1), ("stride_sees_only_zeros", 3)],
)
def test_a_bracket_that_misses_is_widened(monkeypatch, layout, passes):
    # What the layouts above are for: seen from outside only by the number of passes.
    monkeypatch.setattr(sampling, "stride", lambda total: 3)
    strides = []
    magnitudes = host.magnitudes

    def counted(weight, stride=1):
        strides.append(stride)
        return magnitudes(weight, stride)

    net = net_of(layouts(3)[layout].reshape(1, -1))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.9)
    monkeypatch.setattr(host, "magnitudes", counted)
    pruner.update_threshold()
    assert strides == [3] + [1] * passes
