"""min_layer_density and min_channel_density: no layer and no output channel is lost whole."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddle import nn
from pruned_nets import DTYPES, masks_of, net_of, stepped, values_of

from unstructured_pruner import GMPUnstructuredPruner, UnstructuredPruner
from unstructured_pruning import masking

NAMES = ("min_layer_density", "min_channel_density")


@pytest.fixture(params=["cpu", "device"])
def path(request, monkeypatch):
    if request.param == "device":
        monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)


def channels_of(layer: nn.Layer) -> list[list[int]]:
    """The flat indices of the weights of every output channel."""
    shape = layer.weight.shape
    index = np.arange(math.prod(shape)).reshape(shape)
    if isinstance(layer, nn.Linear):
        return [index[:, o].tolist() for o in range(shape[1])]
    if isinstance(layer, nn.Conv2DTranspose):
        inputs = shape[0] // layer._groups
        return [
            index[g * inputs : (g + 1) * inputs, o].ravel().tolist()
            for g in range(layer._groups)
            for o in range(shape[1])
        ]
    return [index[o].ravel().tolist() for o in range(shape[0])]


def least(density: float, n: int) -> int:
    return max(math.ceil(round(density * n, 6)), density > 0)


def literal(layers, scores, densities, pruned) -> list[list[bool]]:
    """What has to be kept, weight by weight: of the parameters that share a threshold.

    scores: flat lists. pruned: how many weights go in all.
    """
    of_layer, of_channel = densities
    kept = []
    for layer, score in zip(layers, scores):
        order = sorted(range(len(score)), key=lambda i: (score[i], i), reverse=True)
        keep = set()
        for channel in channels_of(layer):
            inside = set(channel)
            best = [i for i in order if i in inside]
            keep.update(best[: least(of_channel, len(channel))])
        rest = [i for i in order if i not in keep]
        keep.update(rest[: max(0, least(of_layer, len(score)) - len(keep))])
        kept.append([i in keep for i in range(len(score))])
    free = [(n, i) for n, keep in enumerate(kept) for i, there in enumerate(keep) if not there]
    free.sort(key=lambda at: (scores[at[0]][at[1]], at))
    assert pruned <= len(free)
    for n, i in free[pruned:]:
        kept[n][i] = True
    return kept


@st.composite
def networks(draw) -> nn.Layer:
    layers, whole = [], st.integers(1, 3)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from([nn.Linear, nn.Conv2D, nn.Conv2DTranspose]))
        inputs, outputs, groups = draw(whole), draw(whole), draw(whole)
        if kind is nn.Linear:
            layers.append(nn.Linear(4 * inputs, 4 * outputs))
        else:
            layers.append(kind(groups * inputs, groups * outputs, draw(whole), groups=groups))
    rng, grid = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from([2, 0]))
    for layer in layers:  # very different magnitudes; or mostly ties and zeros
        values = rng.standard_normal(layer.weight.shape) * (
            1 if grid else 10.0 ** rng.integers(-4, 4)
        )
        layer.weight.set_value((np.round(values * grid) / grid if grid else values).astype("f4"))
    return nn.Sequential(*layers)


parts = st.one_of(st.just(0.0), st.floats(0, 0.6))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(networks(), parts, parts, st.floats(0, 1), st.booleans(), st.booleans())
def test_what_is_kept_is_the_least_of_all_and_the_largest_of_the_rest(
    net, of_layer, of_channel, share, local, device
):
    layers = list(net)
    scores = [np.abs(values_of(layer.weight)).ravel().tolist() for layer in layers]
    sizes = [len(score) for score in scores]
    most = [
        n - max(least(of_layer, n), sum(least(of_channel, len(c)) for c in channels_of(layer)))
        for n, layer in zip(sizes, layers)
    ]
    # The largest ratio that every group can meet, and a part of it.
    largest = min(m / n for m, n in zip(most, sizes)) if local else sum(most) / sum(sizes)
    ratio = largest if share > 0.7 else share * largest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "on_cpu", lambda *tensors: not device)
        pruner = stepped(net, "ratio", ratio=ratio, local_sparsity=local,
                         min_layer_density=of_layer, min_channel_density=of_channel)  # fmt: skip
    keeps = [mask.numpy().ravel().tolist() for mask in pruner.masks.values()]
    densities = of_layer, of_channel
    if local:
        for layer, score, keep in zip(layers, scores, keeps):
            assert [keep] == literal([layer], [score], densities, round(ratio * len(score)))
    else:
        assert keeps == literal(layers, scores, densities, round(ratio * sum(sizes)))
    for layer, keep, n in zip(layers, keeps, sizes):
        assert sum(keep) >= least(of_layer, n)
        for channel in channels_of(layer):
            assert sum(keep[i] for i in channel) >= least(of_channel, len(channel))
    before = masks_of(pruner)
    pruner.step()  # now among zeros
    assert masks_of(pruner) == before


@pytest.mark.usefixtures("path")
def test_a_small_layer_dies_without_a_floor_and_lives_with_it():
    def net():
        return net_of(np.arange(1, 11).reshape(5, 2) / 1000, np.arange(1, 31).reshape(15, 2))

    assert [np.sum(m) for m in masks_of(stepped(net(), "ratio", ratio=0.95))] == [0, 2]
    pruner = stepped(net(), "ratio", ratio=0.9, min_layer_density=0.05)
    assert [np.sum(m) for m in masks_of(pruner)] == [1, 3]
    assert masks_of(pruner)[0][-1] == [0, 1]
    assert pruner.threshold == 28  # of what no floor keeps; of w1 it keeps 0.05 * 30, rounded up
    pruner = stepped(net(), "ratio", ratio=0.9, min_channel_density=0.01)
    assert masks_of(pruner) == [[[0, 0]] * 4 + [[1, 1]], [[0, 0]] * 14 + [[1, 1]]]
    pruner = stepped(net(), "threshold", threshold=29.5, min_channel_density=0.01)
    assert masks_of(pruner) == [[[0, 0]] * 4 + [[1, 1]], [[0, 0]] * 14 + [[1, 1]]]


def test_ninety_five_percent_of_a_network_leave_no_way_through_it_but_for_a_floor():
    def network():
        paddle.seed(0)
        net = nn.Sequential(nn.Conv2D(1, 8, 3), nn.ReLU(), nn.Conv2D(8, 8, 3, groups=8), nn.ReLU(),
                            nn.Flatten(), nn.Linear(128, 10))  # fmt: skip
        net[2].weight.set_value(net[2].weight / 1000)
        return net

    pictures = paddle.randn([4, 1, 8, 8])
    dead, alive = network(), network()
    stepped(dead, "ratio", ratio=0.95)
    assert float((dead(pictures) - dead[5].bias).abs().max()) == 0
    pruner = stepped(alive, "ratio", ratio=0.95, min_layer_density=0.02, min_channel_density=0.01)
    assert float((alive(pictures) - alive[5].bias).abs().max()) > 0
    assert pruner.lost_channels() == {}
    assert pruner.prunable_sparsity() == pytest.approx(0.95, abs=1e-3)


@pytest.mark.usefixtures("path")
def test_of_equal_weights_the_last_stay():
    net = net_of([[3, 3], [-3, 3], [3, 3]], [[5, 5, 5, 5, 5]])
    pruner = stepped(net, "ratio", ratio=7 / 11, min_layer_density=0.3)  # 2 of 6 and 2 of 5
    assert masks_of(pruner) == [[[0, 0], [0, 0], [1, 1]], [[0, 0, 0, 1, 1]]]
    pruner = stepped(net_of(np.ones((3, 2))), "ratio", ratio=0.5, min_channel_density=0.3)
    assert masks_of(pruner) == [[[0, 0], [0, 1], [1, 1]]]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("density", "ratio", "first", "second"),
    [
        (0.5, 0.5, [1, 0, 0, 1], [1, 0, 1, 0]),
        (0.25, 0.5, [1, 0, 0, 0], [1, 0, 1, 1]),
        (0.25, 0.75, [1, 0, 0, 0], [0, 0, 1, 0]),
    ],
)
def test_nan_is_kept_as_always_and_infinity_is_large(name, density, ratio, first, second):
    net = net_of([[math.nan], [1], [2], [3]], [[math.inf], [8], [math.inf], [9]])
    pruner = stepped(net, "ratio", ratio=ratio, **{name: density})
    assert [np.ravel(mask).tolist() for mask in masks_of(pruner)] == [first, second]


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_dtypes(dtype):
    net = net_of([[1, -2, 3, -4]], [[10, 20], [40, -30]], dtype=dtype)
    pruner = stepped(net, "ratio", ratio=0.75, min_layer_density=0.25)
    assert masks_of(pruner) == [[[0, 0, 0, 1]], [[0, 0], [1, 0]]]
    assert str(net.w0.dtype).endswith(dtype)
    assert values_of(net.w0).tolist() == [[0, 0, 0, -4]]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("name", NAMES)
def test_float64_is_not_ranked_in_float32(name):
    net = net_of([[1], [1 + 3e-12], [1 + 1e-12]], dtype="float64")
    pruner = stepped(net, "ratio", ratio=2 / 3, **{name: 0.1})
    assert masks_of(pruner) == [[[0], [1], [0]]]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("name", NAMES)
def test_scores_of_ones_own(name):
    class Smallest(UnstructuredPruner):
        def scores(self, name, param):
            return 1 / param.abs()

    weights = [[1], [2], [3]], [[10], [20], [30]]
    assert masks_of(stepped(net_of(*weights), "ratio", Smallest)) == [[[1]] * 3, [[0]] * 3]
    pruner = stepped(net_of(*weights), "ratio", Smallest, **{name: 0.3})
    assert masks_of(pruner) == [[[1], [1], [0]], [[1], [0], [0]]]


def test_a_threshold_and_masking_of_ones_own():
    class Above(UnstructuredPruner):
        """Counts how often it is asked, and halves in place of zeroing."""

        asked = 0

        def update_threshold(self):
            self.threshold, self.asked = 25, self.asked + 1

        def mask_parameters(self, param, mask):
            paddle.assign(param * (mask + 1) / 2, output=param)

    net = net_of([[1, 2, 4]], [[10, 20, 30]])
    pruner = stepped(net, "ratio", Above, ratio=1, min_layer_density=0.3)  # which may be any ratio
    assert masks_of(pruner) == [[[0, 0, 1]], [[0, 0, 1]]]
    assert net.w0.numpy().tolist() == [[0.5, 1, 4]]
    assert pruner.asked == 1


def test_vectors_have_no_channels():
    options = {"ratio": 0.5, "skip_params_func": lambda net: []}
    assert masks_of(stepped(net_of([1, 2, 3, 4]), "ratio", min_channel_density=1, **options)) == [
        [0, 0, 1, 1]
    ]
    assert masks_of(stepped(net_of([1, 2, 3, 4]), "ratio", min_layer_density=0.5, **options)) == [
        [0, 0, 1, 1]
    ]


@pytest.mark.parametrize("density", [1e-9, 0.25])
def test_of_a_floor_that_is_less_than_a_weight_one_stays(density):
    net = net_of([[1, 2, 3, 4]], [[5, 6, 7, 8]])
    masks = masks_of(stepped(net, "ratio", ratio=0.5, min_layer_density=density))
    assert masks == [[[0, 0, 0, 1]], [[0, 1, 1, 1]]]


@pytest.mark.parametrize("options", [{}, dict.fromkeys(NAMES, 0.0)])
def test_without_densities_nothing_is_asked(options, monkeypatch):
    monkeypatch.setattr("unstructured_pruner.Floors", None)
    stepped(net_of([[1, 2]]), "ratio", **options)


@pytest.mark.usefixtures("path")
def test_nothing_changes_at_ratio_zero_and_before_the_first_step():
    net = net_of([[1, 2, 0]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.0, min_layer_density=1)
    assert masks_of(pruner) == [[[1, 1, 1]]]
    pruner.step()
    assert masks_of(pruner) == [[[1, 1, 1]]]


# Of 100 and 60 weights 7 and 5 (4.2, rounded up) stay: 148 of 160 may go.
@pytest.mark.parametrize(
    ("options", "largest", "refused", "message"),
    [
        ({"min_layer_density": 0.07}, 148 / 160, 149 / 160,
         "ratio 0.93125 cannot be met: with min_layer_density=0.07 it can be 0.9281 at most; "
         "lower one of them$"),
        ({"min_channel_density": 0.01}, 1 - 16 / 160, 1 - 15 / 160,
         "with min_channel_density=0.01 it can be 0.9031 at most"),
        ({"min_layer_density": 0.07, "local_sparsity": True}, 55 / 60, 56 / 60,
         "ratio 0.933333 cannot be met in w1: .* it can be 0.9249 at most"),
        ({"min_layer_density": 0.07, "distribution": {"w0": 0.93}}, 0, None, ""),
        ({"min_layer_density": 0.07, "distribution": {"w0": 0.94}}, None, 0,
         "ratio 0.5875 cannot be met in w0: .* it can be 0.5843 at most"),
        ({"min_layer_density": 0.07, "distribution": "erk"}, 0.9268, 0.9269,
         "ratio 0.9269 cannot be met in w0: .* it can be 0.9268 at most"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gmp", [False, True])
def test_a_ratio_that_cannot_be_met_is_refused(options, largest, refused, message, gmp):
    def pruner(ratio):
        net = net_of(np.arange(1, 101).reshape(10, 10), np.arange(1, 61).reshape(10, 6))
        if not gmp:
            return UnstructuredPruner(net, "ratio", ratio=ratio, **options)
        configs = {"stable_iterations": 0, "pruning_iterations": 1, "tunning_iterations": 1,
                   "pruning_steps": 1, "initial_ratio": 0.1}  # fmt: skip
        return GMPUnstructuredPruner(net, ratio, configs=configs, **options)

    if largest is not None:
        allowed = pruner(largest)
        allowed.step()
        allowed.step()
        assert allowed.prunable_sparsity() == pytest.approx(allowed.ratio, abs=0.5 / 160)
    if refused is not None:
        with pytest.raises(ValueError, match=message):
            pruner(refused)


def test_a_ratio_that_is_set_too_high_is_refused_at_the_step():
    pruner = UnstructuredPruner(net_of([[1, 2], [3, 4]]), "ratio", ratio=0.5, min_layer_density=0.5)
    pruner.ratio = 0.75
    with pytest.raises(ValueError, match=r"it can be 0.625 at most"):
        pruner.step()


@pytest.mark.parametrize("name", NAMES)
def test_densities_out_of_range_and_of_blocks_are_refused(name):
    for density in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got {density}"):
            UnstructuredPruner(nn.Linear(2, 2), "ratio", **{name: density})
    with pytest.raises(ValueError, match="cannot have a sparse_block"):
        UnstructuredPruner(nn.Linear(2, 2), "ratio", sparse_block=[2, 1], **{name: 0.1})
