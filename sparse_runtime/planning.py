"""From a network to what runs: operators that run as one, and where their results lie."""

from __future__ import annotations

from dataclasses import dataclass

from .operators import Add, Concatenation, Convolution, Depthwise, Operator, Shape


@dataclass
class Node:
    """What runs at once: an operator, and others that need no result of their own."""

    op: Operator
    inputs: list[int]  # numbers of results
    output: int
    depthwise: Depthwise | None = None  # runs before a convolution of 1x1
    residual: int | None = None  # the result that is added to a convolution's
    activation: Operator | None = None  # whose activation ends it, where that is not op

    def reads(self) -> list[int]:
        return self.inputs if self.residual is None else [*self.inputs, self.residual]


def nodes(operators: list[Operator], outputs: list[int]) -> list[Node]:
    """The operators in their order, with what can be computed in one go as one node."""
    uses = [0] * (len(operators) + 1)
    for number in outputs:
        uses[number] += 1
    for op in operators:
        for number in op.inputs:
            uses[number] += 1
    found: dict[int, Node] = {}  # by the number of the result
    for number, op in enumerate(operators, start=1):
        node = Node(op, list(op.inputs), number)
        before = found.get(node.inputs[0])
        if (
            isinstance(op, Convolution)
            and (op.kernel, op.stride, op.padding, op.groups) == ([1, 1], [1, 1], [0] * 4, 1)
            and before is not None
            and isinstance(before.op, Depthwise)
            and before.op.fits_a_tile()
            and uses[before.output] == 1
        ):
            node.depthwise, node.inputs = before.op, before.inputs
            del found[before.output]
        if isinstance(op, Add) and op.inputs[0] != op.inputs[1]:
            other, last = sorted(op.inputs)
            sum_of = found.get(last)
            if (
                sum_of is not None
                and isinstance(sum_of.op, Convolution)
                and sum_of.op.groups == 1
                and (sum_of.op.activation, sum_of.residual) == ("none", None)
                and uses[last] == 1
            ):
                del found[last]
                sum_of.residual, sum_of.activation, sum_of.output = other, op, number
                node = sum_of
        found[number] = node
    return [found[number] for number in sorted(found)]


@dataclass
class Place:
    """Where a result lies: from a channel on in a buffer that it may share with others."""

    buffer: int  # number of the result whose buffer it is
    channel: int


def places(nodes: list[Node], shapes: list[Shape]) -> dict[int, Place]:
    """Of every result; what a concatenation takes lies in its result where that is possible.

    Then it copies nothing. It is not for the network's input, or what another concatenation took.
    """
    found = {0: Place(0, 0), **{node.output: Place(node.output, 0) for node in nodes}}
    for node in reversed(nodes):  # so that the result is in its own place already
        if not isinstance(node.op, Concatenation):
            continue
        whole, channel = found[node.output], 0
        for number in node.inputs:
            if number != 0 and found[number].buffer == number:
                found[number] = Place(whole.buffer, whole.channel + channel)
            channel += shapes[number][0]
    return found


def lifetimes(nodes: list[Node], found: dict[int, Place], outputs: list[int]) -> dict:
    """First and last node that need each buffer; the input is there before node 0."""
    spans: dict[int, list[int]] = {0: [-1, -1]}
    for i, node in enumerate(nodes):
        for number in [*node.reads(), node.output]:
            span = spans.setdefault(found[number].buffer, [i, i])
            span[1] = i
    for number in outputs:
        spans[found[number].buffer][1] = len(nodes)
    return spans


def offsets(spans: dict[int, list[int]], sizes: dict[int, int]) -> dict[int, int]:
    """Where each buffer begins, so that those needed at the same time do not overlap.

    The largest first, each at the lowest place that is free while it is needed (Pisarchyk and Lee,
    2020: Efficient memory management for deep neural net inference, "greedy by size").
    """
    found: dict[int, int] = {}
    for buffer in sorted(spans, key=lambda b: -sizes[b]):
        first, last = spans[buffer]
        taken = sorted(
            (found[other], found[other] + sizes[other])
            for other in found
            if spans[other][0] <= last and first <= spans[other][1]
        )
        place = 0
        for begin, end in taken:
            if place + sizes[buffer] <= begin:
                break
            place = max(place, end)
        found[buffer] = place
    return found
