"""What holds of every mask, whatever the shapes, dtypes, ties and ratios."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddle import nn

from unstructured_pruner import UnstructuredPruner
from unstructured_pruning import masking

properties = settings(max_examples=60, deadline=None, derandomize=True, database=None)

DTYPES = ["float16", "bfloat16", "float32", "float64"]
ratios = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1))
blocks = st.tuples(st.integers(1, 5), st.integers(1, 5)).filter(lambda block: block != (1, 1))
several_shapes = st.lists(
    st.lists(st.integers(1, 48), min_size=1, max_size=4).filter(lambda s: math.prod(s) <= 2000),
    min_size=1,
    max_size=4,
)


@st.composite
def parameters(draw, dtypes=DTYPES, fine=True) -> list[paddle.Tensor]:
    """Multiples of 1/1, 1/2, 1/16 (mostly ties and zeros of both signs), or else any numbers."""
    grid = draw(st.sampled_from([1, 2, 16, None] if fine else [1, 2, 16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # float64 and shorter weights cannot share a threshold
    dtypes = draw(st.sampled_from([[d for d in dtypes if d != "float64"], ["float64"]]))
    result = []
    for shape in draw(several_shapes):
        values = rng.standard_normal(shape)
        values = values if grid is None else np.round(values * grid) / grid
        result.append(
            paddle.to_tensor(values, dtype="float64").astype(draw(st.sampled_from(dtypes)))
        )
    return result


def pruned(tensors: list[paddle.Tensor], ratio: float, **options):
    """The masks and the weights after one step, and the pruner."""
    net = nn.Layer()
    for i, values in enumerate(tensors):
        parameter = net.create_parameter(
            values.shape,
            dtype=str(values.dtype).split(".")[-1],
            default_initializer=nn.initializer.Assign(np.zeros(values.shape, "float32")),
        )
        paddle.assign(values, output=parameter)
        net.add_parameter(f"w{i}", parameter)
    pruner = UnstructuredPruner(
        net, "ratio", ratio=ratio, skip_params_func=lambda model: [], **options
    )
    pruner.step()
    return masks(pruner), [parameter.detach() for parameter in net.parameters()], pruner


def masks(pruner: UnstructuredPruner) -> list[np.ndarray]:
    return [mask.numpy() for mask in pruner.masks.values()]


def exact(tensor: paddle.Tensor) -> np.ndarray:
    """Its numbers in float64, where all dtypes are exact."""
    return tensor.astype("float64").numpy()


def flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in arrays])


def smallest_first(scores: np.ndarray, count: int) -> np.ndarray:
    """A mask without the `count` smallest; of equal ones the first go."""
    keep = np.ones(scores.size, bool)
    keep[np.argsort(scores, kind="stable")[:count]] = False
    return keep


@properties
@given(parameters(), ratios)
def test_global_ratio_prunes_just_the_smallest_and_of_equals_the_first(tensors, ratio):
    keep = flat(pruned(tensors, ratio)[0])
    magnitude = np.abs(flat(map(exact, tensors)))
    assert np.count_nonzero(~keep) == round(ratio * keep.size)
    if 0 < np.count_nonzero(keep) < keep.size:
        assert magnitude[keep].min() >= magnitude[~keep].max()
    assert np.array_equal(keep, smallest_first(magnitude, round(ratio * keep.size)))


@properties
@given(parameters(), ratios)
def test_local_ratio_does_the_same_in_every_parameter(tensors, ratio):
    for keep, tensor in zip(pruned(tensors, ratio, local_sparsity=True)[0], tensors):
        wanted = smallest_first(np.abs(exact(tensor)).ravel(), round(ratio * keep.size))
        assert np.array_equal(keep.ravel(), wanted)


@properties
@given(parameters(fine=False), ratios, blocks)
def test_blocks_go_whole_and_as_many_as_fit(tensors, ratio, block):
    sizes, scores, kept = [], [], []
    for keep, tensor in zip(pruned(tensors, ratio, sparse_block=block)[0], tensors):
        height = keep.shape[0]
        keep, magnitude = keep.reshape(height, -1), np.abs(exact(tensor)).reshape(height, -1)
        for top in range(0, height, block[0]):
            for left in range(0, keep.shape[1], block[1]):
                where = np.s_[top : top + block[0], left : left + block[1]]
                assert keep[where].all() or not keep[where].any()
                kept.append(keep[where].all())
                sizes.append(keep[where].size)
                scores.append(np.float32(magnitude[where].sum()) / np.float32(sizes[-1]))
    sizes, scores, kept = np.array(sizes), np.array(scores), np.array(kept)
    budget, gone = round(ratio * sizes.sum()), sizes[~kept].sum()
    assert gone <= budget
    assert np.array_equal(kept, smallest_first(scores, np.count_nonzero(~kept)))
    if kept.any():
        following = np.argsort(scores, kind="stable")[np.count_nonzero(~kept)]
        assert gone + sizes[following] > budget


@properties
@given(parameters(), ratios, st.booleans())
def test_masked_weights_are_positive_zeros_and_the_others_untouched(tensors, ratio, local):
    keeps, weights, _ = pruned(tensors, ratio, local_sparsity=local)
    for keep, before, after in zip(keeps, map(exact, tensors), map(exact, weights)):
        assert np.array_equal(after, np.where(keep, before, 0))
        assert np.array_equal(np.signbit(after), np.signbit(before) & keep)


@properties
@given(parameters(fine=False), ratios, st.booleans(), st.one_of(st.just((1, 1)), blocks))
def test_a_second_step_on_the_same_weights_changes_nothing(tensors, ratio, local, block):
    first, weights, pruner = pruned(tensors, ratio, local_sparsity=local, sparse_block=block)
    before = [exact(weight) for weight in weights]
    pruner.step()
    for old, new in zip(first, masks(pruner)):
        assert np.array_equal(old, new)
    for old, weight in zip(before, weights):
        assert np.array_equal(old, exact(weight))


@properties
@given(
    parameters(dtypes=["float32", "float64"], fine=False),
    ratios,
    st.sampled_from([{}, {"local_sparsity": True}, {"sparse_block": (2, 3)}]),
)
def test_a_device_gives_the_masks_and_weights_of_the_cpu(tensors, ratio, options):
    keeps, weights, _ = pruned(tensors, ratio, **options)
    with pytest.MonkeyPatch.context() as patch:  # a fixture would not be undone between examples
        patch.setattr(masking, "on_cpu", lambda *tensors: False)
        device_keeps, device_weights, _ = pruned(tensors, ratio, **options)
    for a, b in zip(keeps, device_keeps):
        assert np.array_equal(a, b)
    for a, b in zip(weights, device_weights):
        assert np.array_equal(exact(a), exact(b))
