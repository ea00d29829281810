"""What runs as one, and where results lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparse_files import properties
from sparse_networks import LAST, MEAN, convolution, depthwise, model, pictures, random_model

from sparse_runtime import Network, model_file, planning
from sparse_runtime.model_file import Model
from sparse_runtime.operators import Add, Concatenation
from sparse_runtime.planning import Place

LINEAR = {"activation": "none"}
seeds = st.integers(0, 1 << 32)


def add(*inputs):
    return {"kind": "add", "inputs": list(inputs)}


def concatenation(*inputs):
    return {"kind": "concatenation", "inputs": list(inputs)}


class Values:
    """What computed a channel, as a number: the same for the same from the same."""

    def __init__(self):
        self.numbers: dict = {}

    def of(self, operator, *inputs: np.ndarray, channels: int) -> np.ndarray:
        """Of the result's channels; operator: None for the input."""
        if isinstance(operator, Concatenation):
            return np.concatenate(inputs)
        taken = [tuple(each.tolist()) for each in inputs]
        if isinstance(operator, Add):
            taken.sort()
        key = id(operator), tuple(taken)
        return np.array([self.numbers.setdefault((key, c), len(self.numbers) + 1)
                         for c in range(channels)])  # fmt: skip


def as_written(made: Model, values: Values) -> list[np.ndarray]:
    """What every result has to be."""
    found = [values.of(None, channels=made.input_shape[0])]
    for op, shape in zip(made.operators, model_file.shapes(made)[1:]):
        found.append(values.of(op, *(found[n] for n in op.inputs), channels=shape[0]))
    return found


def run_in_memory(made: Model) -> None:
    """Runs what is planned, with numbers in the place of pixels, in memory of the planned size."""
    values, shapes = Values(), model_file.shapes(made)
    right = as_written(made, values)
    nodes = planning.nodes(made.operators, made.outputs)
    places = planning.places(nodes, shapes)
    spans = planning.lifetimes(nodes, places, made.outputs)
    sizes = {b: int(np.prod(shapes[b])) for b in spans}
    begins = planning.offsets(spans, sizes)
    memory = np.zeros(max(begins[b] + sizes[b] for b in spans), np.int64)
    assert len(memory) <= sum(sizes.values())

    def pixels(number: int) -> np.ndarray:
        """[channels, pixels]; a part of the buffer that it lies in."""
        place, (channels, height, width) = places[number], shapes[number]
        buffer = memory[begins[place.buffer] :][: sizes[place.buffer]]
        buffer = buffer.reshape(-1, height * width)
        assert place.channel + channels <= len(buffer)
        return buffer[place.channel : place.channel + channels]

    def read(number: int) -> np.ndarray:
        found = pixels(number)
        assert (found == right[number][:, None]).all()
        return found[:, 0].copy()

    pixels(0)[:] = right[0][:, None]
    for node in nodes:
        taken = [read(number) for number in node.inputs]
        channels = len(right[node.output])
        if node.depthwise is not None:
            taken = [values.of(node.depthwise, *taken, channels=len(taken[0]))]
        result = values.of(node.op, *taken, channels=channels)
        if node.residual is not None:
            result = values.of(node.activation, result, read(node.residual), channels=channels)
        pixels(node.output)[:] = result[:, None]
        read(node.output)
    for number in made.outputs:
        read(number)


@properties
@given(seeds)
def test_every_result_is_there_while_it_is_needed(seed):
    run_in_memory(random_model(seed))


@st.composite
def branches(draw) -> Model:
    """Of pictures of one size, so that all fits: sums and concatenations of what is before."""
    steps = []
    count = [draw(st.integers(1, 4))]  # channels, by result
    for number in range(draw(st.integers(2, 14))):
        before = st.integers(0, number)
        kind = draw(st.sampled_from(["concatenation"] * 3 + ["add", "depthwise", "convolution"]))
        inputs = [draw(before)]
        if kind == "concatenation":
            inputs = draw(st.lists(before, min_size=1, max_size=4))
            count.append(sum(count[n] for n in inputs))
            steps.append(concatenation(*inputs))
        elif kind == "add":
            fitting = [n for n in range(number + 1) if count[n] == count[inputs[0]]]
            steps.append(add(inputs[0], draw(st.sampled_from(fitting))))
            count.append(count[inputs[0]])
        elif kind == "depthwise":
            steps.append(depthwise(inputs=inputs))
            count.append(count[inputs[0]])
        else:
            rows = draw(st.sampled_from(count[-3:]))
            steps.append(convolution(rows, inputs=inputs, **LINEAR))
            count.append(rows)
        if count[-1] > 60:
            return model((count[0], 1, 2), *steps[:-1] or [LAST])
    outputs = draw(st.lists(st.integers(1, len(steps)), min_size=1, max_size=3))
    return model((count[0], 1, 2), *steps, outputs=outputs)


@properties
@given(branches())
def test_concatenations_of_what_is_shared(made):
    run_in_memory(made)


@st.composite
def buffers(draw):
    lengths = draw(st.lists(st.tuples(st.integers(-1, 20), st.integers(0, 8)), min_size=1))
    spans = {number: [first, first + more] for number, (first, more) in enumerate(lengths)}
    return spans, {number: draw(st.integers(1, 50)) for number in spans}


@properties
@given(buffers())
def test_buffers_that_are_needed_at_once_lie_apart(buffers):
    spans, sizes = buffers
    begins = planning.offsets(spans, sizes)
    assert begins.keys() == spans.keys()
    assert min(begins.values()) >= 0
    for a, b in itertools.combinations(spans, 2):
        together = spans[a][0] <= spans[b][1] and spans[b][0] <= spans[a][1]
        apart = begins[a] + sizes[a] <= begins[b] or begins[b] + sizes[b] <= begins[a]
        assert apart or not together
    assert max(begins[n] + sizes[n] for n in spans) <= sum(sizes.values())


def test_a_chain_needs_two_buffers():
    spans = {number: [number - 1, number] for number in range(6)}
    begins = planning.offsets(spans, dict.fromkeys(spans, 10))
    assert [begins[number] for number in range(6)] == [0, 10, 0, 10, 0, 10]


def test_a_gap_is_used_that_is_large_enough():
    spans = {0: [0, 9], 1: [0, 1], 2: [0, 9], 3: [2, 3], 4: [2, 9], 5: [4, 5]}
    sizes = {0: 9, 1: 8, 2: 7, 3: 6, 4: 2, 5: 3}
    # Of 24: 0 takes the first 9, 1 the 8 behind it, 2 the last 7. When 1 ends, 3 and 4 fit there.
    assert planning.offsets(spans, sizes) == {0: 0, 1: 9, 2: 17, 3: 9, 4: 15, 5: 9}


def planned(*steps, shape=(4, 5, 5), outputs=None):
    made = model(shape, *steps, outputs=outputs)
    return planning.nodes(made.operators, made.outputs), made


def outputs_of(*steps, outputs=None) -> list[int]:
    """Of what runs at once, the numbers of the results."""
    return [node.output for node in planned(*steps, outputs=outputs)[0]]


def test_a_depthwise_convolution_runs_with_the_1x1_behind_it():
    nodes, made = planned(convolution(4), depthwise(2), convolution(7))
    assert [(node.op, node.depthwise, node.inputs, node.output) for node in nodes] == [
        (made.operators[0], None, [0], 1), (made.operators[2], made.operators[1], [1], 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("behind", "outputs"),
    [
        (convolution(8, 3), None), (convolution(8, 1, 2), None),
        (convolution(8, 1, (1, 2)), None), (convolution(8, groups=2), None), (MEAN, None),
        (depthwise(), None), (convolution(8), [1, 2]),
    ],
)  # fmt: skip
def test_it_does_not_run_with_others(behind, outputs):
    assert outputs_of(depthwise(), behind, outputs=outputs) == [1, 2]


def test_it_runs_by_itself_where_two_need_it():
    steps = depthwise(), convolution(4, inputs=[1]), convolution(4, inputs=[1])
    assert outputs_of(*steps, outputs=[2, 3]) == [1, 2, 3]


def test_a_sum_runs_with_the_later_convolution():
    for inputs in ((1, 3), (3, 1)):
        nodes, made = planned(
            convolution(4), depthwise(), convolution(4, **LINEAR), add(*inputs), MEAN
        )
        assert [node.output for node in nodes] == [1, 4, 5]
        fused = nodes[1]
        assert (fused.op, fused.depthwise, fused.activation) == (
            made.operators[2], made.operators[1], made.operators[3],
        )  # fmt: skip
        assert (fused.inputs, fused.residual, fused.reads()) == ([1], 1, [1, 1])


@pytest.mark.parametrize(
    ("steps", "outputs"),
    [
        ([convolution(4), convolution(4, activation="relu"), add(1, 2)], None),
        ([convolution(4), convolution(4, groups=2, **LINEAR), add(1, 2)], None),
        ([convolution(4), convolution(4, **LINEAR), add(2, 2)], None),
        ([convolution(4), convolution(4, **LINEAR), add(1, 2)], [2, 3]),
        ([convolution(4, **LINEAR), convolution(4), add(1, 2)], None),
        ([convolution(4), depthwise(1, "none"), add(1, 2)], None),
    ],
)
def test_a_sum_that_runs_by_itself(steps, outputs):
    assert outputs_of(*steps, outputs=outputs) == [1, 2, 3]


def test_a_sum_is_added_to_no_sum_before_its_activation():
    steps = convolution(4, **LINEAR), add(0, 1), add(0, 2)
    assert outputs_of(*steps) == [2, 3]


def places(*steps, outputs=None) -> dict[int, Place]:
    nodes, made = planned(*steps, outputs=outputs)
    return planning.places(nodes, model_file.shapes(made))


def test_what_is_concatenated_lies_there_already():
    inner = convolution(3), convolution(2, inputs=[0]), concatenation(1, 2)
    found = places(*inner, convolution(6), concatenation(4, 3))
    assert found == {0: Place(0, 0), 4: Place(5, 0), 3: Place(5, 6), 1: Place(5, 6),
                     2: Place(5, 9), 5: Place(5, 0)}  # fmt: skip


def test_what_two_take_lies_in_the_last():
    found = places(convolution(3), concatenation(0, 1), concatenation(1, 0, 1))
    assert (found[0], found[2], found[1]) == (Place(0, 0), Place(2, 0), Place(3, 0))


def test_a_dense_block_copies_its_input_alone():
    """As in DenseNet, where every layer takes all before it."""
    steps = []
    for layer in range(4):
        steps += [convolution(3, 3, 1, 1, inputs=[2 * layer]), concatenation(2 * layer, -1)]
    tried = Network(model((4, 7, 7), *steps, MEAN), instruction_set="plain", tune=False)
    functions = [step.function for step in tried._steps]
    assert functions == ["convolution", "gather", *["convolution"] * 3, "mean"]


@properties
@given(seeds)
def test_the_memory_of_a_network(seed):
    """At least what a step takes and gives at once, at most all results."""
    made = random_model(seed)
    tried = Network(made, 2, instruction_set="plain", tune=False)
    shapes = model_file.shapes(made)
    nodes = planning.nodes(made.operators, made.outputs)
    needed = [4 * 2 * sum(np.prod(shapes[n]) for n in {*node.reads(), node.output})
              for node in nodes if not isinstance(node.op, Concatenation)]  # fmt: skip
    assert max(needed, default=0) <= tried.activations <= tried.activations_in_sum
    assert tried.activations == 4 * len(tried._arena)


def test_the_memory_of_a_chain_is_that_of_two_results():
    """Each of 8 x 16 x 16 floats, 32 behind each channel and 64 around all."""
    one = 4 * (8 * (16 * 16 + 32) + 64)
    tried = Network(model((8, 16, 16), *[convolution(8, 3, 1, 1)] * 5), instruction_set="plain")
    assert (tried.activations, tried.activations_in_sum) == (2 * one, 6 * one)
    assert tried(pictures(model((8, 16, 16), LAST), 1))[0].shape == (1, 8, 16, 16)
