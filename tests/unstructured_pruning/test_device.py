"""The path for other devices (Paddle's operators), here on the CPU.

Paddle's CPU has no float16 and bfloat16 `where`, so those are left to a machine with a GPU.
"""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from pruned_nets import layouts, masks_of, net_of, sorted_masks, stepped

from unstructured_pruner import UnstructuredPruner
from unstructured_pruning import device, masking, sampling


@pytest.fixture
def device_path(monkeypatch):
    monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)


def _device_arrays() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    large = layouts()
    return {
        "small": [rng.standard_normal((3, 4)), rng.standard_normal((2, 3, 3, 3))],
        "ties": [np.float64([[2, -2, 1, 0]]), np.float64([[2, 5], [-2, 0]])],
        "nan_and_inf": [np.array([[math.nan, 1, math.inf, 2, 3, -math.inf, math.nan, 0]])],
        "normal": [large["normal"].reshape(1, -1)],
        "nearly_half_nan": [large["nearly_half_nan"].reshape(1, -1)],
        "misses": [large["stride_sees_only_zeros"].reshape(1, -1)],
    }


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize("name", list(_device_arrays()))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ratio_masks_on_the_device_path(name, dtype, brackets):
    arrays = [a.astype(dtype) for a in _device_arrays()[name]]
    for ratio in (0, 0.25, 0.5, 0.9):
        net = net_of(*arrays, dtype=dtype)
        pruner = stepped(net, "ratio", ratio=ratio)
        wanted = sorted_masks(arrays, ratio)
        for mask, weight, keep, before in zip(
            pruner.masks.values(), net.parameters(), wanted, arrays
        ):
            np.testing.assert_array_equal(mask.numpy(), keep)
            np.testing.assert_array_equal(weight.numpy(), np.where(keep, before, 0))
            assert str(weight.dtype).endswith(dtype)
            assert not weight.stop_gradient
    if "nan" not in name:  # NaN and infinity are beyond every bracket
        assert all(brackets) == (name != "misses")


@pytest.fixture
def brackets(monkeypatch) -> list[bool]:
    """Of every selection, whether it tried a bracket."""
    tried, original = [], device._threshold_and_ties

    def selected(weights, pruned, bracket=True):
        tried.append(bracket)
        return original(weights, pruned, bracket)

    monkeypatch.setattr(device, "_threshold_and_ties", selected)
    return tried


@pytest.fixture
def read_by_host(monkeypatch) -> list[int]:
    """The size of every tensor that the host reads, which on a device it has to wait for."""
    read = []
    for method in ("numpy", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(paddle.Tensor, method)

        def reading(tensor, *args, original=original):
            read.append(math.prod(tensor.shape))
            return original(tensor, *args)

        monkeypatch.setattr(paddle.Tensor, method, reading)
    return read


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({}, [1]),
        ({"local_sparsity": True}, [3]),
        ({"sparse_block": [4, 1]}, [1]),
        ({"sparse_block": [7, 1]}, []),  # smaller at the edge
        # of the layers of which a floor is more than that of their channels; then of all
        ({"min_layer_density": 0.1, "min_channel_density": 0.01}, [2, 1]),
    ],
)
def test_what_the_host_reads_in_a_step_on_a_device(read_by_host, brackets, options, read):
    rng = np.random.default_rng(0)
    net = net_of(*(rng.standard_normal(shape) for shape in ((40, 600), (16, 3, 3, 3), (8, 1))))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.55, **options)
    read_by_host.clear()
    for _ in range(2):  # the second time among zeros
        pruner.step()
    assert read_by_host == 2 * read
    assert all(brackets)
    assert pruner.prunable_sparsity() == pytest.approx(0.55, abs=1e-3)


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize("bracket", [(0, 0), (0, 10), (98, 99), (99, 99)])
def test_all_is_sorted_on_a_device_where_the_bracket_misses(monkeypatch, brackets, bracket):
    monkeypatch.setattr(sampling, "bracket", lambda *args: bracket)
    values = np.random.default_rng(0).standard_normal((25, 20))  # of which 100 are sampled
    pruner = stepped(net_of(values), "ratio", ratio=0.55)
    assert brackets == [True, False]
    assert float(pruner.threshold) == np.sort(np.abs(values.astype("float32")), None)[275]
    np.testing.assert_array_equal(pruner.masks["w0"], sorted_masks([values], 0.55)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("ratio", {"ratio": 0.5}),
        ("ratio", {"ratio": 1}),
        ("threshold", {"threshold": 0.5}),
        ("threshold", {"threshold": 0}),
    ],
)
def test_the_device_path_gives_what_the_cpu_path_gives(monkeypatch, mode, options, dtype):
    arrays = [[[0.5, -0.5, 0.25, 8], [-0.0, 0, -0.25, 1]], [[0.125], [-3]]]
    on_cpu, elsewhere = net_of(*arrays, dtype=dtype), net_of(*arrays, dtype=dtype)
    wanted = stepped(on_cpu, mode, **options)
    monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)
    pruner = stepped(elsewhere, mode, **options)
    assert masks_of(pruner) == masks_of(wanted)
    assert pruner.threshold == wanted.threshold
    assert pruner.summarize_weights(elsewhere, 0.8) == wanted.summarize_weights(on_cpu, 0.8)
    for a, b in zip(on_cpu.parameters(), elsewhere.parameters()):
        assert a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.usefixtures("device_path")
def test_float64_weights_that_one_float32_stands_for_on_the_device_path():
    values = 1 + 1e-9 * np.random.default_rng(0).standard_normal((1, 3000))
    pruner = stepped(net_of(values, dtype="float64"), "ratio", ratio=0.55)
    np.testing.assert_array_equal(pruner.masks["w0"].numpy(), sorted_masks([values], 0.55)[0])
    assert pruner.threshold == np.sort(values[0])[1650]


@pytest.mark.usefixtures("device_path")
def test_the_device_path_masks_nan_and_infinity_to_zero():
    net = net_of([[math.nan, -math.inf, 3, -1]])
    pruner = UnstructuredPruner(net, "threshold")
    paddle.assign(paddle.to_tensor([[False, False, True, False]]), output=pruner.masks["w0"])
    pruner.update_params()
    assert net.w0.numpy().tolist() == [[0, 0, 3, 0]]
    assert not np.signbit(net.w0.numpy()).any()


@pytest.mark.usefixtures("device_path")
def test_a_float64_threshold_is_not_rounded_to_float32_on_the_device_path():
    net = net_of([[0.1, 0.3]], dtype="float64")
    assert masks_of(stepped(net, "threshold", threshold=0.1)) == [[[1, 1]]]


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize("scale", [1, 1e-6, 1e-17, 1e-30])
def test_weights_that_are_nearly_equal_on_the_device_path(scale):
    # Paddle's == takes numbers closer than 1e-8 (2.6) or 1e-15 (3.3) for equal; ties must not be.
    values = (scale * np.random.default_rng(0).standard_normal((1, 300_000))).astype("float32")
    pruner = stepped(net_of(values), "ratio", ratio=0.55)
    np.testing.assert_array_equal(pruner.masks["w0"].numpy(), sorted_masks([values], 0.55)[0])


@pytest.mark.usefixtures("device_path")
def test_a_tie_on_the_device_path_is_no_weight_that_is_only_near():
    pruner = stepped(net_of([[2e-16, 1e-16, 1e-16, 1]]), "ratio", ratio=0.25)
    assert masks_of(pruner) == [[[1, 0, 1, 1]]]
