"""The pruner's promises: which weights are masked, how many, and that they are exactly 0."""

from __future__ import annotations

import copy
import math

import numpy as np
import paddle
import pytest
from paddle import nn

from unstructured_pruner import (
    GMPUnstructuredPruner,
    UnstructuredPruner,
    default_skip_params,
)
from unstructured_pruning import device, host, masking, sampling

DTYPES = ["float16", "bfloat16", "float32", "float64"]
PADDLE_2 = paddle.__version__.startswith("2.")


def net_of(*arrays, dtype: str = "float32") -> nn.Layer:
    """A layer whose root owns the parameters w0, w1, ... with these values."""
    net = nn.Layer()
    for i, values in enumerate(arrays):
        values = paddle.to_tensor(np.asarray(values)).astype(dtype)
        parameter = net.create_parameter(values.shape, dtype=dtype)
        paddle.assign(values, output=parameter)
        net.add_parameter(f"w{i}", parameter)
    return net


def values_of(tensor: paddle.Tensor) -> np.ndarray:
    return tensor.detach().astype("float64").numpy()


def masks_of(pruner: UnstructuredPruner) -> list:
    return [mask.numpy().astype(int).tolist() for mask in pruner.masks.values()]


def stepped(net: nn.Layer, mode: str, strategy=UnstructuredPruner, **options) -> UnstructuredPruner:
    pruner = strategy(net, mode, **options)
    pruner.step()
    return pruner


def sorted_masks(arrays: list[np.ndarray], ratio: float) -> list[np.ndarray]:
    """What ratio mode has to give, by a stable sort (numpy sorts NaN to the end; NaN is kept)."""
    flat = np.abs(np.concatenate([a.ravel() for a in arrays]))
    keep = np.isnan(flat)
    keep[np.argsort(flat, kind="stable")[round(ratio * flat.size) :]] = True
    ends = np.cumsum([a.size for a in arrays])[:-1]
    return [part.reshape(a.shape) for part, a in zip(np.split(keep, ends), arrays)]


class ConvNet(nn.Layer):
    """A net with a layer of each kind that matters for names and counts."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.Conv2D(4, 2, 1))
        self.fc = nn.Linear(2, 5)

    def forward(self, x):
        return self.fc(self.features(x).mean(axis=[2, 3]))


# Threshold mode.


def test_threshold_keeps_what_is_not_smaller():
    net = net_of([[0.5, -0.5, 0.49, -0.49], [0.51, -7.0, 0.0, -0.0]])
    pruner = stepped(net, "threshold", threshold=0.5)
    assert masks_of(pruner) == [[[1, 1, 0, 0], [1, 1, 0, 0]]]
    assert net.w0.numpy().tolist() == [[0.5, -0.5, 0, 0], [np.float32(0.51), -7.0, 0, 0]]
    assert pruner.threshold == 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threshold_is_rounded_to_the_weights_dtype(dtype):
    # 0.7 is not a float32: the nearest one is smaller, and a weight set to 0.7 is still kept.
    assert masks_of(stepped(net_of([[0.7]], dtype=dtype), "threshold", threshold=0.7)) == [[[1]]]


def test_threshold_zero_keeps_everything():
    assert masks_of(stepped(net_of([[0.0, 1e-30]]), "threshold", threshold=0)) == [[[1, 1]]]


def test_threshold_is_the_same_for_all_parameters():
    pruner = stepped(net_of([[1, 2]], [[3], [1]]), "threshold", threshold=1.5)
    assert masks_of(pruner) == [[[0, 1]], [[1], [0]]]


# Ratio mode: literals.


@pytest.mark.parametrize(
    ("ratio", "n", "pruned"),
    [
        (0, 4, 0),
        (1, 4, 4),
        (1, 1, 1),
        (0.5, 100, 50),
        (0.25, 4, 1),
        (0.55, 7, 4),  # 3.85
        (0.49, 7, 3),  # 3.43
        (0.001, 100, 0),
        (0.999, 100, 100),
    ],
)
def test_ratio_prunes_exactly_the_rounded_number(ratio, n, pruned):
    net = net_of(np.arange(1, n + 1, dtype="float32").reshape(1, n))
    masks = masks_of(stepped(net, "ratio", ratio=ratio))
    assert masks == [[[0] * pruned + [1] * (n - pruned)]]
    assert np.count_nonzero(net.w0.numpy() == 0) == pruned


def test_ratio_is_of_all_parameters_together():
    net = net_of([[1, -2, 3], [-9, 8, 7]], [[-0.5], [6]])
    pruner = stepped(net, "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 0, 0], [1, 1, 1]], [[0], [1]]]
    assert pruner.threshold == 6


def test_of_equal_magnitudes_the_first_in_parameter_order_go():
    pruner = stepped(net_of([[2, -2, 1]], [[-2, 5, 2]]), "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 0, 0]], [[1, 1, 1]]]
    assert pruner.threshold == 2
    pruner = stepped(net_of([[2, 5, 1]], [[-2, 2, 2]]), "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 1, 0]], [[0, 1, 1]]]


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 1])
def test_all_equal_weights(ratio):
    pruned = int(8 * ratio)
    masks = masks_of(stepped(net_of([[3, -3, 3, 3]], [[3, 3, 3, 3]]), "ratio", ratio=ratio))
    assert masks[0][0] + masks[1][0] == [0] * pruned + [1] * (8 - pruned)


def test_weights_that_are_zero_already_count_as_pruned():
    net = net_of([[0, 5, 0, 0, 4, 0, 3, 2, 0, 0]])  # 60% zeros
    pruner = stepped(net, "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 1, 0, 0, 1, 0, 1, 1, 0, 1]]]  # the first 5 zeros
    assert net.w0.numpy().tolist() == [[0, 5, 0, 0, 4, 0, 3, 2, 0, 0]]
    assert pruner.threshold == 0


@pytest.mark.parametrize("ratio", [0.5, 1])
def test_all_zero_weights(ratio):
    pruned = int(4 * ratio)
    masks = masks_of(stepped(net_of(np.zeros((1, 4))), "ratio", ratio=ratio))
    assert masks == [[[0] * pruned + [1] * (4 - pruned)]]


def test_ratio_finds_a_new_threshold_at_every_step():
    net = net_of([[1, 2, 3, 4]])
    pruner = stepped(net, "ratio", ratio=0.5)
    assert pruner.threshold == 3
    net.w0.set_value(np.float32([[8, 7, 6, 5]]))
    pruner.step()
    assert pruner.threshold == 7
    assert masks_of(pruner) == [[[1, 1, 0, 0]]]
    pruner.ratio = 0.75  # a schedule just sets it
    pruner.step()
    assert masks_of(pruner) == [[[1, 0, 0, 0]]]


def test_the_mode_can_be_changed_between_steps():
    net = net_of([[2, 2, 2, 2]])
    pruner = stepped(net, "ratio", ratio=0.5)
    net.w0.set_value(np.float32([[2, 2, 2, 2]]))
    pruner.mode, pruner.threshold = "threshold", 2
    pruner.step()
    assert masks_of(pruner) == [[[1, 1, 1, 1]]]


def test_ratio_one_prunes_a_float64_that_no_float32_holds():
    for largest in (0.1, 0.3, 1 / 3, 1e-300, 1e30):
        net = net_of([[largest, -largest]], dtype="float64")
        assert masks_of(stepped(net, "ratio", ratio=1)) == [[[0, 0]]]


# NaN and infinity.


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_kept_and_a_masked_infinity_becomes_zero(dtype):
    net = net_of([[math.nan, 2, -math.inf, 1]], dtype=dtype)
    pruner = stepped(net, "threshold", threshold=1.5)
    assert masks_of(pruner) == [[[1, 1, 1, 0]]]
    paddle.assign(paddle.to_tensor([[True, True, False, False]]), output=pruner.masks["w0"])
    pruner.update_params()
    np.testing.assert_array_equal(values_of(net.w0), [[math.nan, 2, 0, 0]])


@pytest.mark.parametrize(
    ("weights", "ratio", "masks"),
    [
        ([math.nan, 1, 2, math.nan], 0.25, [1, 0, 1, 1]),
        ([math.nan, 1, 2, math.nan], 0.5, [1, 0, 0, 1]),
        ([math.nan, 1, 2, math.nan], 0.75, [1, 0, 0, 1]),  # no more than there are numbers
        ([math.nan, 0, 0, math.nan], 0.25, [1, 0, 1, 1]),
        ([math.inf, 1, 2, -math.inf], 0.5, [1, 0, 0, 1]),
        ([math.inf, 1, 2, -math.inf], 0.75, [0, 0, 0, 1]),
        ([math.nan, math.nan, math.nan, math.nan], 0.5, [1, 1, 1, 1]),
        ([math.inf, 1, math.nan, 2], 0.75, [0, 0, 1, 0]),
    ],
)
def test_nan_and_infinity_do_not_break_the_count(weights, ratio, masks):
    net = net_of([weights])
    assert masks_of(stepped(net, "ratio", ratio=ratio)) == [[masks]]
    np.testing.assert_array_equal(net.w0.numpy(), [np.where(masks, weights, 0)])


def test_ratio_one_prunes_infinity_too():
    net = net_of([[1, math.inf, -math.inf]])
    assert masks_of(stepped(net, "ratio", ratio=1)) == [[[0, 0, 0]]]
    net = net_of([[1, math.inf, math.nan]])
    assert masks_of(stepped(net, "ratio", ratio=1)) == [[[0, 0, 1]]]


# Ratio mode: large weights, where the k-th magnitude is found from a sample.

N = 3 * 65536 + 7
STRIDE = sampling.stride(N)
RATIOS = [1 / N, 0.0005, 0.3, 0.55, 0.9, 0.9995, 1 - 1 / N]


def _layouts(stride=STRIDE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(N).astype("float32")
    index = np.arange(N)
    return {
        "normal": normal,
        "sorted": np.sort(normal),
        "largest_first": -np.sort(-np.abs(normal)),
        "heavy_tailed": rng.standard_cauchy(N).astype("float32") ** 3,
        "two_valued": np.where(rng.random(N) < 0.4, -0.25, 0.5).astype("float32"),
        "all_equal": np.full(N, -0.125, "float32"),
        "sixty_percent_zeros": normal * (rng.random(N) < 0.4),
        "stride_sees_only_zeros": np.where(index % stride == 0, 0, normal),
        "stride_sees_only_the_largest": np.where(index % stride == 0, 100 + normal, normal),
        "stride_sees_two_extremes": np.where(
            index % stride == 0, np.where(index % 2, 0, 9), normal
        ),
        "small_integers": np.round(3 * normal),
        "nearly_half_nan": np.where(rng.random(N) < 0.45, np.nan, normal),
        "some_nan_and_inf": np.where(rng.random(N) < 0.01, np.nan, np.where(normal > 3, np.inf, 1)),
    }


@pytest.mark.parametrize("layout", list(_layouts()))
def test_large_weights_get_the_masks_of_a_plain_sort(layout):
    values = _layouts()[layout].astype("float32")
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

    net = net_of(_layouts(3)[layout].reshape(1, -1))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.9)
    monkeypatch.setattr(host, "magnitudes", counted)
    pruner.update_threshold()
    assert strides == [3] + [1] * passes


# Applied masks.


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_weights_are_plus_zero_and_the_others_untouched(dtype):
    values = [[-1.0, 0.25, -0.25, 3.0], [-0.0, -2.0, 0.125, -5.0]]
    net = net_of(values, dtype=dtype)
    pruner = stepped(net, "threshold", threshold=1)
    after = values_of(net.w0)
    assert after.tolist() == [[-1, 0, 0, 3], [0, -2, 0, -5]]
    assert not np.signbit(after[after == 0]).any()
    assert str(net.w0.dtype).endswith(dtype)
    assert pruner.masks["w0"].dtype == paddle.bool
    assert not net.w0.stop_gradient


def test_update_params_is_idempotent_and_leaves_the_masks():
    net = net_of([[1, 2, 3, 4]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    pruner.update_params()
    assert net.w0.numpy().tolist() == [[1, 2, 3, 4]]  # before the first step nothing is masked
    pruner.step()
    for _ in range(2):
        pruner.update_params()
        assert net.w0.numpy().tolist() == [[0, 0, 3, 4]]
    net.w0.set_value(np.float32([[9, 9, 0.5, 0.5]]))
    pruner.update_params()
    assert net.w0.numpy().tolist() == [[0, 0, 0.5, 0.5]]
    assert masks_of(pruner) == [[[0, 0, 1, 1]]]


@pytest.mark.parametrize("mode", ["ratio", "threshold"])
def test_masked_weights_stay_zero_under_momentum_and_weight_decay(mode):
    paddle.seed(0)
    net = ConvNet()
    opt = paddle.optimizer.Momentum(0.1, 0.9, parameters=net.parameters(), weight_decay=0.01)
    pruner = UnstructuredPruner(net, mode, threshold=0.1, ratio=0.55)
    moved = False
    for _ in range(5):
        nn.functional.cross_entropy(
            net(paddle.randn([8, 1, 6, 6])), paddle.randint(0, 5, [8])
        ).backward()
        opt.step()
        pruner.step()
        opt.clear_grad()
        for name, mask in pruner.masks.items():
            weight, mask = net.state_dict()[name].numpy(), mask.numpy()
            assert (weight[~mask] == 0).all()
            assert (weight[mask] != 0).all()
        moved = moved or pruner.threshold != 0.1
        if mode == "ratio":  # 36 + 8 + 10 weights
            assert sum(int((~m.numpy()).sum()) for m in pruner.masks.values()) == round(0.55 * 54)
    assert moved == (mode == "ratio")


def test_a_pruned_weight_can_come_back():
    net = net_of([[1, 2, 3, 4]])
    pruner = stepped(net, "ratio", ratio=0.5)
    net.w0.set_value(np.float32([[5, 0, 3, 4]]))
    pruner.step()
    assert masks_of(pruner) == [[[1, 0, 0, 1]]]
    assert net.w0.numpy().tolist() == [[5, 0, 0, 4]]


def test_static_masks_freeze_the_zeros_of_prunable_weights_only():
    net = nn.Linear(2, 2)  # its bias is all zeros
    net.weight.set_value(np.float32([[0, -0.0], [3, -1e-3]]))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.75)
    pruner.set_static_masks()
    assert list(pruner.masks) == ["weight"]
    assert masks_of(pruner) == [[[0, 0], [1, 1]]]
    net.weight.set_value(np.float32([[7, 8], [1e-3, 9]]))
    net.bias.set_value(np.float32([5, 6]))
    pruner.step()
    assert net.weight.numpy().tolist() == [[0, 0], [np.float32(1e-3), 9]]
    assert net.bias.numpy().tolist() == [5, 6]


@pytest.mark.parametrize("dtype", DTYPES)
def test_static_masks_in_every_dtype(dtype):
    net = net_of([[0, 2, -0.0, math.nan]], dtype=dtype)
    pruner = UnstructuredPruner(net, "ratio")
    pruner.set_static_masks()
    assert masks_of(pruner) == [[[0, 1, 0, 1]]]


def test_a_model_that_is_cast_after_the_pruner_was_made():
    net = nn.Linear(4, 4)
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    net.to(dtype="bfloat16")
    pruner.step()
    assert net.weight.dtype == paddle.bfloat16
    assert pruner.masks["weight"].dtype == paddle.bool
    assert int((values_of(net.weight) == 0).sum()) == 8


# The model is left as it is.


def test_the_model_gets_no_state_and_no_hooks():
    net = ConvNet()
    keys = list(net.state_dict())
    layers = [name for name, _ in net.named_sublayers()]
    pruner = stepped(net, "ratio")
    pruner.set_static_masks()
    pruner.step()
    assert list(net.state_dict()) == keys
    assert [name for name, _ in net.named_sublayers()] == layers
    assert list(pruner.masks) == ["features.0.weight", "features.2.weight", "fc.weight"]
    for layer in net.sublayers(include_self=True):
        assert not layer._forward_pre_hooks
        assert not layer._forward_post_hooks


def test_biases_and_norms_keep_their_values():
    net = ConvNet()
    before = {name: values_of(p) for name, p in net.state_dict().items()}
    pruner = stepped(net, "ratio", ratio=1)
    for name, p in net.state_dict().items():
        wanted = 0 * before[name] if name in pruner.masks else before[name]
        np.testing.assert_array_equal(values_of(p), wanted)
    assert (values_of(net.features[1]._variance) == 1).all()


# Which parameters are pruned.


def test_a_bare_layer():
    net = nn.Linear(2, 2)
    net.weight.set_value(np.float32([[1, 2], [3, 4]]))
    assert masks_of(stepped(net, "ratio", ratio=0.5)) == [[[0, 0], [1, 1]]]


def test_parameters_of_the_root_and_of_its_sublayers():
    net = net_of([[1, 2]])
    net.fc = nn.Linear(1, 2)
    net.fc.weight.set_value(np.float32([[0.5, 3]]))
    pruner = stepped(net, "ratio", ratio=0.5)
    assert list(pruner.masks) == ["w0", "fc.weight"]
    assert masks_of(pruner) == [[[0, 1]], [[0, 1]]]


def tied_net() -> nn.Layer:
    net = nn.Layer()
    net.a, net.b, net.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
    net.b.weight = net.a.weight
    net.a.weight.set_value(np.arange(1, 10, dtype="float32").reshape(3, 3))
    net.c.weight.set_value(np.float32([[10, 11], [12, 13], [14, 15]]))
    return net


def test_a_shared_parameter_counts_once():
    net = tied_net()
    pruner = stepped(net, "ratio", ratio=0.6)  # 9 of 15
    assert list(pruner.masks) == ["a.weight", "c.weight"]
    assert pruner.threshold == 10
    assert pruner.prunable_sparsity() == 0.6
    assert UnstructuredPruner.total_sparse(net) == (9 + 8) / (15 + 8)  # the biases are zeros
    assert (net.b.weight.numpy() == 0).all()


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "a", "b"])
def test_a_shared_parameter_is_skipped_by_each_of_its_names(name):
    pruner = UnstructuredPruner(
        tied_net(), "ratio", skip_params_func=lambda net: {name, "b.bias", "a.bias", "c.bias"}
    )
    assert list(pruner.masks) == ["c.weight"]


def test_a_shared_layer_is_skipped_by_each_of_its_names():
    net = nn.Layer()
    net.a, net.c = nn.Linear(3, 3), nn.Linear(3, 2)
    net.b = net.a  # net.state_dict() lists b.weight, too
    for name in ("b", "b.weight"):
        pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net, name=name: {name})
        assert "a.weight" not in pruner.masks


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
def test_a_data_parallel_model():  # of one process, which needs no init_parallel_env()
    net = nn.Linear(2, 2)
    net.weight.set_value(np.float32([[1, 2], [3, 4]]))
    net.bias.set_value(np.float32([1, 1]))
    wrapped = paddle.DataParallel(net)
    pruner = stepped(wrapped, "ratio", ratio=0.25, skip_params_func=lambda model: {"bias"})
    assert list(pruner.masks) == ["weight"]
    assert pruner.model is wrapped
    assert net.weight.numpy().tolist() == [[0, 2], [3, 4]]
    assert UnstructuredPruner.total_sparse(wrapped) == 1 / 6
    assert UnstructuredPruner.total_sparse_conv1x1(wrapped) == 0
    assert pruner.summarize_weights(wrapped, 0.5) == 3
    assert "_layers" not in str(pruner)
    other = nn.Linear(2, 2)  # masks pass between the wrapped model and the plain one
    UnstructuredPruner(other, "ratio").set_state_dict(pruner.state_dict())
    assert int((other.weight.numpy() == 0).sum()) == 1


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm(2),
        nn.BatchNorm1D(2),
        nn.BatchNorm2D(2),
        nn.BatchNorm3D(2),
        nn.SyncBatchNorm(2),
        nn.GroupNorm(1, 2),
        nn.LayerNorm(2),
        nn.InstanceNorm1D(2),
        nn.InstanceNorm2D(2),
        nn.InstanceNorm3D(2),
        nn.LocalResponseNorm(2),
        nn.SpectralNorm([2, 2]),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_are_skipped_by_default_whatever_their_parameters_dimensions(norm):
    norm.add_parameter("square", norm.create_parameter([2, 2]))
    net = nn.Sequential(nn.Linear(2, 2), norm)
    assert default_skip_params(net) == {"0.bias", *(f"1.{n}" for n, _ in norm.named_parameters())}
    assert list(UnstructuredPruner(net, "ratio").masks) == ["0.weight"]


def test_one_dimensional_parameters_are_skipped_by_default():
    net = net_of([1, 2], [[3, 4]], [[[5]]])
    assert default_skip_params(net) == {"w0"}
    assert list(UnstructuredPruner(net, "ratio").masks) == ["w1", "w2"]


@pytest.mark.parametrize(
    ("names", "pruned"),
    [
        (lambda net: {"fc.weight"}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {net.fc.weight.name}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {"fc"}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {net.fc.full_name()}, ["features.2.weight", "features.0.weight"]),
        (lambda net: {"features.0"}, ["features.2.weight", "fc.weight"]),
        (lambda net: {net.features[0].full_name(), "fc"}, ["features.2.weight"]),
        (lambda net: ["features"], ["fc.weight"]),  # a list, and all that a layer contains
        (lambda net: {net.features.full_name()}, ["fc.weight"]),
    ],
)
def test_skip_params_func_takes_each_kind_of_name(names, pruned):
    def skip(net):
        return default_skip_params(net) | set(names(net))

    pruner = UnstructuredPruner(ConvNet(), "ratio", skip_params_func=skip)
    assert sorted(pruner.masks) == sorted(pruned)


def test_skip_params_func_replaces_the_default():
    net = nn.Linear(2, 2)
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: [])
    assert list(pruner.masks) == ["weight", "bias"]
    assert pruner.skip_params == set()
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: ["weight"])
    assert list(pruner.masks) == ["bias"]
    assert pruner.skip_params == {"weight"}


def test_a_name_with_two_meanings_is_refused():
    net, first = nn.Layer(), nn.Linear(2, 2)
    name = first.full_name()
    net.add_sublayer("one", first)
    net.add_sublayer(name, nn.Linear(2, 2))  # say linear_7, as the first calls itself
    wanted = (
        f"'{name}' means different parameters: as a structured name {name}.weight, {name}.bias; "
        r"as a layer's full_name\(\) one.weight, one.bias"
    )
    with pytest.raises(ValueError, match=wanted):
        UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {name})
    for weight in ("one.weight", f"{name}.weight"):  # which have one
        pruner = UnstructuredPruner(
            net, "ratio", skip_params_func=lambda net, weight=weight: {weight, "one.bias"}
        )
        assert weight not in pruner.masks
        assert len(pruner.masks) == 2


def test_a_parameters_own_name_with_two_meanings_is_refused():
    net = nn.Layer()
    net.a, net.b = nn.Linear(2, 2, weight_attr=paddle.ParamAttr(name="b")), nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"b\.bias; as a parameter's Paddle name a\."):
        UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {"b"})


def test_two_names_for_the_same_parameters_are_no_conflict():
    net, layer = nn.Layer(), nn.Linear(2, 2)
    net.add_sublayer(layer.full_name(), layer)
    net.other = nn.Linear(2, 2)
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {layer.full_name()})
    assert list(pruner.masks) == ["other.weight", "other.bias"]


def test_paddleslims_own_skip_function():
    def skip(net):  # full names of layers
        return {layer.full_name() for layer in net.sublayers() if isinstance(layer, nn.LayerNorm)}

    net = nn.Layer()
    net.norm_a, net.fc, net.norm_b = nn.LayerNorm(2), nn.Linear(2, 2), nn.LayerNorm(2)
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=skip)
    assert list(pruner.masks) == ["fc.weight", "fc.bias"]
    # Attributes that are called as Paddle calls its layers, and not in its order.
    net.add_sublayer(net.norm_b.full_name(), nn.LayerNorm(2))
    with pytest.raises(ValueError, match="means different parameters"):
        UnstructuredPruner(net, "ratio", skip_params_func=skip)


def test_all_copies_of_a_layer_have_its_full_name():
    block = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    net = nn.LayerList([copy.deepcopy(block) for _ in range(3)])
    name = net[0][0].full_name()
    assert name == net[2][0].full_name()
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {name})
    assert [n for n in pruner.masks if ".0." in n] == []
    assert len(pruner.masks) == 6  # of the norms
    own = net[1][0].weight.name  # whereas copies of parameters get names of their own
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda net: {own})
    assert [n for n in pruner.masks if n.endswith("0.weight")] == ["0.0.weight", "2.0.weight"]


def test_frozen_weights_are_pruned_unless_they_are_skipped():
    net = ConvNet()
    net.features[0].weight.stop_gradient = True
    assert "features.0.weight" in UnstructuredPruner(net, "ratio").masks
    pruner = UnstructuredPruner(  # as the docstring and README.md have it
        net,
        "ratio",
        skip_params_func=lambda model: (
            default_skip_params(model)
            | {name for name, p in model.named_parameters() if p.stop_gradient}
        ),
    )
    assert list(pruner.masks) == ["features.2.weight", "fc.weight"]


def test_running_statistics_are_never_pruned():
    net = ConvNet()  # whose function forgets the BatchNorm
    pruner = UnstructuredPruner(net, "ratio", ratio=1, skip_params_func=lambda net: {"fc"})
    assert "features.1.weight" in pruner.masks
    assert not [name for name in pruner.masks if name.endswith(("_mean", "_variance"))]


def test_a_users_own_mask_need_be_neither_bool_nor_contiguous_nor_whole():
    net = net_of([[1, 2, 3], [4, 5, 6]])
    pruner = UnstructuredPruner(net, "ratio")
    keep = np.array([[1, 1, 0], [0, 1, 1]])
    for mask in (
        paddle.to_tensor(keep.astype("float32")),
        paddle.to_tensor(keep.T.astype("bool")).transpose([1, 0]),
    ):
        net.w0.set_value(np.float32([[1, 2, 3], [4, 5, 6]]))
        pruner.masks["w0"] = mask
        pruner.update_params()
        assert net.w0.numpy().tolist() == [[1, 2, 0], [0, 5, 6]]
    pruner.mask_parameters(net.w0, paddle.to_tensor([False, True, True]))
    assert net.w0.numpy().tolist() == [[0, 2, 0], [0, 5, 6]]


def test_an_unknown_name_is_refused_with_close_ones():
    with pytest.raises(ValueError, match=r"'fc\.wieght'.*fc\.weight"):
        UnstructuredPruner(ConvNet(), "ratio", skip_params_func=lambda net: {"fc.wieght"})


def test_parameters_that_are_not_floats_are_left_alone():
    net = net_of([[1, 2]])
    threes = nn.initializer.Constant(3)
    counts = net.create_parameter([1, 2], dtype="int32", default_initializer=threes)
    net.add_parameter("counts", counts)
    assert list(stepped(net, "ratio", ratio=1).masks) == ["w0"]


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2.6 makes no such parameter")
def test_parameters_without_a_weight_are_left_alone():
    net = net_of([[1, 2]])
    net.add_parameter("empty", net.create_parameter([0, 2]))
    assert list(stepped(net, "ratio", ratio=0.5).masks) == ["w0"]


# Refusals.


@pytest.mark.parametrize(
    "model",
    [nn.BatchNorm2D(3), nn.ReLU(), nn.Layer()],
    ids=lambda model: type(model).__name__,
)
def test_nothing_to_prune_is_refused(model):
    with pytest.raises(ValueError, match="nothing to prune"):
        UnstructuredPruner(model, "ratio")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda net: net.parameters(), "got <class 'list'>: give the network itself"),
        (lambda net: net.state_dict(), "a paddle.nn.Layer, got <class 'collections.OrderedDict'>"),
        (lambda net: ConvNet, "a paddle.nn.Layer, got <class 'type'>"),
        (paddle.Model, "got <class 'paddle.hapi.model.Model'>: give its .network"),
    ],
)
def test_what_is_no_layer_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner(model(ConvNet()), "ratio")
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner.total_sparse(model(ConvNet()))


def test_static_graph_mode_is_refused():
    net = ConvNet()
    pruner = UnstructuredPruner(net, "ratio")
    paddle.enable_static()
    try:
        with pytest.raises(ValueError, match=r"call paddle.disable_static\(\) first"):
            UnstructuredPruner(net, "ratio")
    finally:
        paddle.disable_static()
    pruner.step()


def test_skipping_everything_is_refused():
    with pytest.raises(ValueError, match="nothing to prune"):
        UnstructuredPruner(ConvNet(), "ratio", skip_params_func=lambda net: {"features", "fc"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse_block": [np.float32(1), 1]}, "sparse_block must be two whole numbers > 0"),
        ({"prune_period": np.int64(0)}, "prune_period must be a whole number >= 1"),
        ({"mode": "gmp"}, "mode must be 'ratio' or 'threshold', got 'gmp'"),
        ({"mode": None}, "mode must be .* got None"),
        ({"ratio": -0.1}, r"ratio must be in \[0, 1\], got -0.1"),
        ({"ratio": 1.2}, r"ratio must be in \[0, 1\], got 1.2"),
        ({"ratio": math.nan}, "ratio must be .* got nan"),
        ({"threshold": -0.01}, "threshold must be a finite number >= 0, got -0.01"),
        ({"threshold": math.inf}, "threshold must be .* got inf"),
        ({"threshold": math.nan}, "threshold must be .* got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UnstructuredPruner(nn.Linear(2, 2), **{"mode": "ratio", **options})


@pytest.mark.parametrize("ratio", [-0.1, 1.5, math.nan])
def test_a_ratio_out_of_range_is_refused_at_the_step_too(ratio):
    net = net_of([[1, 2]])
    pruner = UnstructuredPruner(net, "ratio")
    pruner.ratio = ratio
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\]"):
        pruner.step()
    assert net.w0.numpy().tolist() == [[1, 2]]


def test_arguments_in_paddleslims_order_and_as_attributes():
    net = nn.Linear(2, 2)
    pruner = UnstructuredPruner(net, "threshold", 0.02, 0.3, None, None, False, [1, 1])
    assert (pruner.model, pruner.mode, pruner.threshold, pruner.ratio) == (
        net,
        "threshold",
        0.02,
        0.3,
    )
    assert (pruner.local_sparsity, pruner.sparse_block) == (False, [1, 1])
    assert pruner.skip_params == {"bias"}


# Strategies of one's own, as typed for PaddleSlim.


class Assigning(UnstructuredPruner):
    def mask_parameters(self, param, mask):
        param_tmp = param * mask
        param_tmp.stop_gradient = True
        paddle.assign(param_tmp, output=param)


class Halving(UnstructuredPruner):
    """Masked weights are halved in place of zeroed: seen to be what step() uses."""

    def mask_parameters(self, param, mask):
        paddle.assign(param * (mask + 1) / 2, output=param)


class CallingSuper(UnstructuredPruner):
    def mask_parameters(self, param, mask):
        super().mask_parameters(param, mask)


class MedianThreshold(UnstructuredPruner):
    def update_threshold(self):
        weights = [p.numpy().flatten() for p in self.model.parameters() if len(p.shape) > 1]
        self.threshold = np.sort(np.abs(np.concatenate(weights)))[len(weights[0]) // 2]


@pytest.mark.parametrize("strategy", [Assigning, CallingSuper])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_custom_mask_parameters(strategy, dtype):
    net = net_of([[1, -2, 3, -4]], dtype=dtype)
    pruner = stepped(net, "ratio", strategy, ratio=0.5)
    assert net.w0.numpy().tolist() == [[0, 0, 3, -4]]
    assert net.w0.numpy().dtype == dtype
    assert pruner.masks["w0"].dtype == paddle.bool
    assert not net.w0.stop_gradient
    (net.w0**2).sum().backward()
    assert net.w0.grad.numpy().tolist() == [[0, 0, 6, -8]]


def test_custom_mask_parameters_decides_what_becomes_of_a_masked_weight():
    net = net_of([[1, -2, 3, -4]])
    stepped(net, "ratio", Halving, ratio=0.5)
    assert net.w0.numpy().tolist() == [[0.5, -1, 3, -4]]


def test_custom_update_threshold_decides_alone():
    net = net_of([[1, -2, 2, 2, 3, 0]])
    pruner = stepped(net, "ratio", MedianThreshold, ratio=0.9)
    assert pruner.threshold == 2
    assert masks_of(pruner) == [[[0, 1, 1, 1, 1, 0]]]  # ties are kept


def test_custom_update_threshold_is_not_asked_in_threshold_mode():
    pruner = stepped(net_of([[1, 2, 3]]), "threshold", MedianThreshold, threshold=2.5)
    assert masks_of(pruner) == [[[0, 0, 1]]]


def test_a_custom_threshold_that_starts_from_the_exact_one():
    class AtLeastTwo(UnstructuredPruner):
        def update_threshold(self):
            super().update_threshold()
            self.threshold = max(self.threshold, 2)

    # The exact one is 1, with two of its three ties to go; that says nothing of the ties at 2.
    pruner = stepped(net_of([[1, 1, 1, 2, 2, 3]]), "ratio", AtLeastTwo, ratio=1 / 3)
    assert masks_of(pruner) == [[[0, 0, 0, 1, 1, 1]]]


def test_update_params_by_itself_records_no_gradients():
    class InPlace(UnstructuredPruner):
        def mask_parameters(self, param, mask):
            param.multiply_(mask)  # of a leaf: an error but for no_grad

    net = net_of([[1, -2, 3, -4]])
    pruner = stepped(net, "ratio", InPlace, ratio=0.5)
    net.w0.set_value(np.float32([[5, 5, 5, 5]]))
    pruner.update_params()
    assert net.w0.numpy().tolist() == [[0, 0, 5, 5]]
    assert net.w0.is_leaf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["bool", "float32"])
def test_mask_parameters_takes_bool_and_float_masks(dtype, mask):
    net = net_of([[1, -2, math.inf]], dtype=dtype)
    pruner = UnstructuredPruner(net, "ratio")
    pruner.mask_parameters(net.w0, paddle.to_tensor([[1, 0, 0]]).astype(mask))
    assert values_of(net.w0).tolist() == [[1, 0, 0]]


# Reports.


def half_zero_net() -> nn.Layer:
    """30 parameters besides the batch norm's 4: 9 of 18, 2 of 4 and 2 of 4 zeros, 4 zero biases."""
    net = nn.Layer()
    net.conv3 = nn.Conv2D(1, 2, 3)
    net.conv1 = nn.Conv2D(2, 2, 1)
    net.fc = nn.Linear(2, 2, bias_attr=False)
    net.norm = nn.LayerNorm(2)
    net.conv3.weight.set_value(np.float32([0, 1] * 9).reshape(2, 1, 3, 3))
    net.conv1.weight.set_value(np.float32([0, 1, 1, 1]).reshape(2, 2, 1, 1))
    net.fc.weight.set_value(np.float32([[0, 0], [-0.0, 2]]))
    net.conv3.bias.set_value(np.float32([0, 1]))
    return net


def test_total_sparse_counts_everything():
    # weights 9 + 1 + 3 of 26, biases 1 + 2 of 4, norm 0 of 2 (weight) and 2 of 2 (bias)
    assert UnstructuredPruner.total_sparse(half_zero_net()) == 18 / 34
    assert UnstructuredPruner.total_sparse(nn.ReLU()) == 0


def test_total_sparse_conv1x1_counts_1x1_convolutions_only():
    assert UnstructuredPruner.total_sparse_conv1x1(half_zero_net()) == 1 / 4
    for layer in (nn.Conv2D(2, 2, (1, 3)), nn.Conv2D(2, 2, (3, 1)), nn.Linear(2, 2), nn.ReLU()):
        for parameter in layer.parameters():
            parameter.set_value(paddle.zeros_like(parameter))
        assert UnstructuredPruner.total_sparse_conv1x1(layer) == 0


def test_prunable_sparsity_counts_what_the_pruner_prunes():
    net = half_zero_net()
    assert UnstructuredPruner(net, "ratio").prunable_sparsity() == 13 / 26

    def skip(net):
        return default_skip_params(net) | {"conv3", "fc"}

    assert UnstructuredPruner(net, "ratio", skip_params_func=skip).prunable_sparsity() == 1 / 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparsity_in_every_dtype(dtype):
    assert UnstructuredPruner.total_sparse(net_of([[0, 1, -0.0, 2e-5, math.nan]], dtype=dtype)) == (
        2 / 5
    )


@pytest.mark.parametrize("tiny", [1e-7, 1e-12, 1e-20])
def test_a_tiny_weight_is_not_a_zero(tiny):  # though Paddle's == says so
    net = net_of([[tiny, 0, -tiny, 1]])
    pruner = UnstructuredPruner(net, "ratio")
    assert UnstructuredPruner.total_sparse(net) == pruner.prunable_sparsity() == 1 / 4
    pruner.set_static_masks()
    assert masks_of(pruner) == [[[1, 0, 1, 1]]]


@pytest.mark.parametrize(
    ("ratio", "threshold"), [(0, 0), (0.25, 2), (0.5, 3), (0.75, 4), (0.1, 0), (0.9, None)]
)
def test_summarize_weights_gives_the_threshold_of_a_ratio(ratio, threshold):
    net = nn.Linear(2, 2)
    net.weight.set_value(np.float32([[4, -3], [-1, 2]]))
    found = UnstructuredPruner(net, "ratio").summarize_weights(net, ratio)
    if threshold is None:  # all four go: anything above the largest
        assert found > 4
    else:
        assert found == threshold
    assert net.weight.numpy().tolist() == [[4, -3], [-1, 2]]


def test_summarize_weights_of_another_model():
    net = nn.Linear(2, 1)
    net.weight.set_value(np.float32([[4], [-3]]))
    net.bias.set_value(np.float32([1]))  # not prunable by default
    assert UnstructuredPruner(ConvNet(), "ratio").summarize_weights(net, 0.5) == 4


@pytest.mark.parametrize("ratio", [-0.5, 1.5])
def test_summarize_weights_refuses_a_ratio_out_of_range(ratio):
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\]"):
        UnstructuredPruner(net, "ratio").summarize_weights(net, ratio)


def test_the_table_of_layers():
    rows = [line.split() for line in str(UnstructuredPruner(half_zero_net(), "ratio")).split("\n")]
    assert rows == [
        ["layer", "shape", "weights", "zeros", "sparsity", "channels"],
        ["conv3.weight", "[2,", "1,", "3,", "3]", "18", "9", "50.00%"],
        ["conv1.weight", "[2,", "2,", "1,", "1]", "4", "1", "25.00%"],
        ["fc.weight", "[2,", "2]", "4", "3", "75.00%", "1/2"],  # of its two outputs one is left
        ["prunable", "26", "13", "50.00%"],
        ["not", "pruned", "8", "5", "62.50%"],
        ["all", "34", "18", "52.94%"],
    ]


def test_the_table_where_everything_is_pruned():
    lines = str(UnstructuredPruner(nn.Linear(2, 2, bias_attr=False), "ratio")).split("\n")
    assert lines[-2].split() == ["not", "pruned", "0", "0", "-"]
    assert len({len(line) for line in lines}) == 1  # the columns line up


@pytest.mark.parametrize(
    ("layer", "alive", "channels"),  # `alive`: an index that is not zeroed, one weight of a channel
    [
        (nn.Linear(3, 4), (0, 2), 4),
        (nn.Embedding(3, 4), (0, 2), 4),
        (nn.Conv1D(3, 4, 2), (1, 2, 0), 4),
        (nn.Conv2D(4, 6, 3, groups=2), (5, 0, 1, 2), 6),
        (nn.Conv3D(2, 3, 1), (1, 1, 0, 0, 0), 3),
        (nn.Conv2DTranspose(4, 6, 3, groups=2), (1, 2, 0, 0), 6),
        (nn.SimpleRNNCell(3, 4), (2, 0), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Layer) else "",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_channels_without_a_weight(layer, alive, channels, dtype):
    net = nn.Sequential(copy.deepcopy(layer))
    net.to(dtype=dtype)
    pruner = UnstructuredPruner(net, "ratio")
    name, weight = next(iter(pruner._weights.items()))
    paddle.assign(paddle.ones_like(weight), output=weight)
    assert name not in pruner.lost_channels()
    values = np.zeros(weight.shape)
    paddle.assign(paddle.to_tensor(values).astype(dtype), output=weight)
    assert pruner.lost_channels()[name] == (channels, channels)
    values[alive] = 1e-30  # Paddle's == would take it for 0
    paddle.assign(paddle.to_tensor(values).astype(dtype), output=weight)
    assert pruner.lost_channels()[name] == (channels - 1, channels)


def test_what_has_less_than_two_dimensions_has_no_channels():
    net = nn.Layer()
    net.scale, net.weight = net.create_parameter([]), net.create_parameter([2, 2])
    net.bias = net.create_parameter([2], is_bias=True)  # zeros
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda model: set())
    assert pruner.lost_channels() == {}
    assert "scale" in str(pruner)
    assert (
        UnstructuredPruner(net, "ratio", skip_params_func=lambda m: {"weight"}).lost_channels()
        == {}
    )


def test_a_transposed_convolution_has_channels_in_every_group():
    layer = nn.Conv2DTranspose(4, 6, 1, groups=2)  # [4, 3, 1, 1]: inputs 0 and 1 make channels 0-2
    pruner = UnstructuredPruner(layer, "ratio")
    weights = np.float32([[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    layer.weight.set_value(weights[..., None, None])
    assert pruner.lost_channels() == {"weight": (3, 6)}


# The model changes after the pruner was made.


class Heads(nn.Layer):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))


def new_head(net):
    net.head = nn.Linear(4, 2)


def new_weight(net):
    net.head.weight = net.head.create_parameter([4, 2])


def new_inner_layer(net):
    net.body[0] = nn.Linear(4, 4)


def a_layer_more(net):
    net.body.add_sublayer("more", nn.Linear(4, 4))


def a_parameter_more(net):
    net.head.more = net.head.create_parameter([4, 2])


def a_layer_less(net):
    del net.head


def weight_norm(net):
    nn.utils.weight_norm(net.head)


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
@pytest.mark.parametrize("wrap", [lambda net: net, paddle.DataParallel], ids=["plain", "parallel"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (new_head, "head.weight"),
        (new_weight, "head.weight"),
        (new_inner_layer, "body.0.weight"),
        (a_layer_more, "body.more.weight"),
        (a_parameter_more, "head.more"),
        (a_layer_less, "head.weight"),
        (weight_norm, "head.weight, head.weight_v"),
    ],
)
def test_replaced_weights_are_noticed(change, named, wrap):
    net = Heads()
    pruner = stepped(wrap(net), "ratio", ratio=0.5)
    change(net)
    wanted = rf"has other weights .*\({named}\): make a new pruner"
    for use in (pruner.step, pruner.__str__, pruner.prunable_sparsity, pruner.lost_channels):
        with pytest.raises(ValueError, match=wanted):
            use()
    stepped(wrap(net), "ratio", ratio=0.5)


def test_gmp_notices_replaced_weights_too():
    net = Heads()
    configs = {"stable_iterations": 0, "pruning_iterations": 2, "tunning_iterations": 1,
               "pruning_steps": 1, "initial_ratio": 0.1}  # fmt: skip
    pruner = GMPUnstructuredPruner(net, configs=configs)
    pruner.step()
    new_head(net)
    with pytest.raises(ValueError, match="make a new pruner"):
        pruner.step()


def test_remove_weight_norm_is_noticed():
    net = Heads()
    nn.utils.weight_norm(net.head)
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    for _ in range(2):
        net(paddle.ones([1, 4]))  # which makes head.weight anew
        pruner.step()
    nn.utils.remove_weight_norm(net.head)
    with pytest.raises(ValueError, match="make a new pruner"):
        pruner.step()


def test_a_skipped_name_that_is_gone_is_noticed():
    net = Heads()
    names = {"head", "body.0.bias", "body.1"}
    pruner = stepped(net, "ratio", skip_params_func=lambda net: names)
    a_layer_less(net)
    with pytest.raises(ValueError, match=r"no layer or parameter is named 'head'.*make a new prun"):
        pruner.step()


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
def test_what_leaves_the_weights_alone_may_change(tmp_path):
    net = Heads()
    pruner = stepped(net, "ratio", ratio=0.5)
    net.set_state_dict({name: value * 2 for name, value in net.state_dict().items()})
    pruner.step()
    net.body.add_sublayer("dropout", nn.Dropout(0.5))
    net.body.add_sublayer("norm", nn.LayerNorm(4))
    net.body[0].bias = net.body[0].create_parameter([4], is_bias=True)
    pruner.step()
    assert list(pruner.masks) == ["body.0.weight", "head.weight"]
    paddle.DataParallel(net)
    paddle.save(net.state_dict(), str(tmp_path / "net"))
    net.set_state_dict(paddle.load(str(tmp_path / "net")))
    pruner.step()
    assert pruner.prunable_sparsity() == 0.5
    assert "body.0.weight" in str(pruner)


def test_a_recurrent_network_is_no_change():
    net = nn.LSTM(3, 4)
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    for _ in range(2):
        net(paddle.ones([1, 2, 3]))[0].sum().backward()
        pruner.step()
    assert pruner.prunable_sparsity() == 0.5


# Saving and resuming.


def as_they_are(state, folder):
    return state


def masks_as_numpy(state, folder):
    return {**state, "masks": {name: mask.numpy() for name, mask in state["masks"].items()}}


def from_a_file(state, folder):
    paddle.save(state, str(folder / "pruner.pdprune"))
    return paddle.load(str(folder / "pruner.pdprune"))


def from_a_file_as_numpy(state, folder):
    paddle.save(state, str(folder / "pruner.pdprune"))
    return paddle.load(str(folder / "pruner.pdprune"), return_numpy=True)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("way", [as_they_are, masks_as_numpy, from_a_file, from_a_file_as_numpy])
def test_state_dict_round_trip(way, static, tmp_path):
    net = net_of([[1, 2, 3, 4]], [[5, 0.5]])
    pruner = stepped(net, "ratio", ratio=0.5)
    if static:
        pruner.set_static_masks()
    other = net_of([[9, 9, 9, 9]], [[9, 9]])
    resumed = UnstructuredPruner(other, "ratio", ratio=0.5)
    resumed.set_state_dict(way(pruner.state_dict(), tmp_path))
    assert masks_of(resumed) == masks_of(pruner) == [[[0, 0, 1, 1]], [[1, 0]]]
    assert resumed.threshold == pruner.threshold == 3
    assert resumed.masks["w0"].dtype == paddle.bool
    assert other.w0.numpy().tolist() == [[0, 0, 9, 9]]  # applied at once
    assert other.w1.numpy().tolist() == [[9, 0]]
    other.w0.set_value(np.float32([[9, 8, 1, 2]]))
    resumed.step()
    wanted = [[[0, 0, 1, 1]], [[1, 0]]] if static else [[[1, 1, 0, 0]], [[1, 0]]]
    assert masks_of(resumed) == wanted
    assert masks_of(pruner) == [[[0, 0, 1, 1]], [[1, 0]]]  # which shares no memory with it


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (net_of([[1, 2, 3]]), "w0"),  # another shape
        (net_of([[1, 2]], [[3]]), "w1"),  # one too many
        (nn.Linear(1, 2), "w0, weight"),  # another name
    ],
    ids=["shape", "number", "name"],
)
def test_masks_of_another_model_are_refused(foreign, message):
    pruner = stepped(net_of([[1, 2]]), "ratio", ratio=0.5)
    state = stepped(foreign, "ratio", ratio=1).state_dict()
    with pytest.raises(ValueError, match=f"do not fit the model: {message}$"):
        pruner.set_state_dict(state)
    assert masks_of(pruner) == [[[0, 1]]]
    assert pruner.threshold == 2


def test_masks_of_a_part_of_the_model_are_refused():
    pruner = UnstructuredPruner(net_of([[1, 2]], [[3]]), "ratio")
    with pytest.raises(ValueError, match=r"do not fit the model: w1$"):
        pruner.set_state_dict(UnstructuredPruner(net_of([[1, 2]]), "ratio").state_dict())


# The path for other devices (Paddle's operators), here on the CPU. Paddle's CPU has no float16 and
# bfloat16 `where`, so those are left to a machine with a GPU.


@pytest.fixture
def device_path(monkeypatch):
    monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)


def _device_arrays() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    large = _layouts()
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


# Weights of more than one dtype in one model, and thresholds of other types.


def test_float16_and_float32_weights_in_one_model():
    net = net_of([[1, 4, 3]])
    half = net.create_parameter([1, 3], dtype="float16")
    paddle.assign(paddle.to_tensor([[2.0, 5, 3]]).astype("float16"), output=half)
    net.add_parameter("w1", half)
    pruner = stepped(net, "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 1, 0]], [[0, 1, 1]]]
    assert str(half.dtype).endswith("float16")


@pytest.mark.parametrize(
    "threshold",
    [
        0.7,
        np.float32(0.7),
        np.float64(0.7),  # numpy 2 would compare float32 weights with it in float64
        "tensor",
    ],
    ids=["float", "float32", "float64", "tensor"],
)
def test_a_custom_threshold_may_be_any_kind_of_number(threshold):
    class Fixed(UnstructuredPruner):
        def update_threshold(self):
            self.threshold = paddle.to_tensor(0.7) if threshold == "tensor" else threshold

    assert masks_of(stepped(net_of([[0.7, 0.6]]), "ratio", Fixed)) == [[[1, 0]]]


def test_float64_and_shorter_weights_cannot_share_a_threshold():
    net = net_of([[1.0]])
    net.add_parameter("w1", net_of([[1 + 1e-12, 2]], dtype="float64").w0)
    with pytest.raises(ValueError, match="cannot share a threshold"):
        UnstructuredPruner(net, "ratio")
    for options in ({"distribution": "uniform"}, {"sparse_block": [1, 2]}):
        UnstructuredPruner(net, "ratio", **options).step()
    UnstructuredPruner(net, "threshold").step()


def test_blocks_of_nan_are_kept_where_blocks_differ_in_size():
    net = net_of([[1, 1, math.nan, math.nan, math.nan]])
    pruner = stepped(net, "ratio", ratio=0.8, sparse_block=[1, 2])
    assert masks_of(pruner) == [[[0, 0, 1, 1, 1]]]


@pytest.mark.parametrize("block", [[4096, 1], [1, 4096], [4096, 4096]])
def test_a_block_beyond_the_weight_is_the_weight(block, monkeypatch):
    monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)
    blocks = masking.Blocks(paddle.ones([3, 2, 2]), *block)
    assert (blocks.rows, blocks.columns) == (min(block[0], 3), min(block[1], 4))
    net = net_of(np.ones((3, 4)), np.full((2, 5), 2.0))
    pruner = stepped(net, "ratio", ratio=0.55, sparse_block=[4096, 4096])
    assert [mask.any() for mask in map(np.array, masks_of(pruner))] == [False, True]


def test_a_state_that_lacks_something_changes_nothing():
    pruner = stepped(net_of([[1, 2]]), "ratio", ratio=0.5)
    state = UnstructuredPruner(net_of([[1, 2]]), "ratio").state_dict()
    del state["iteration"]
    with pytest.raises(KeyError):
        pruner.set_state_dict(state)
    assert masks_of(pruner) == [[[0, 1]]]
