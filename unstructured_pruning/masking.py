"""All that touches single weights is written twice, where numpy and Paddle differ:

- on the CPU, `host`: numpy on the tensors' own memory, a piece at a time, so that the temporaries
  stay in cache (a third of the time of Paddle's operators);
- elsewhere, `device`: Paddle's operators on whole tensors.

Both have `update_mask`, `zero_masked`, `smallest_kept`, `mark` and `mark_largest`, which mean the
same.
"""

from __future__ import annotations

from types import ModuleType

import paddle

from unstructured_pruning import device, host
from unstructured_pruning.blocks import Blocks


def place_of(*tensors: paddle.Tensor | Blocks) -> ModuleType:
    """`host` or `device`, after where these tensors lie."""
    return host if on_cpu(*tensors) else device


def on_cpu(*tensors: paddle.Tensor | Blocks) -> bool:
    return all(tensor.place.is_cpu_place() and tensor.is_contiguous() for tensor in tensors)
