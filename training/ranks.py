"""What the processes of a training agree on. Every function is to be called by all ranks."""

from __future__ import annotations

import hashlib

import numpy as np
import paddle
import paddle.distributed as dist


def check_same_step(step: int) -> None:
    steps = numbers(step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the ranks would go on from steps {steps}: the checkpoints have to be in a folder "
            "that all machines see"
        )


def check_same_masks(pruner, step: int) -> None:
    """All ranks find the same masks from the same weights; if not, they train different models."""
    digest = hashlib.sha256()
    for mask in pruner.masks.values():
        digest.update(np.packbits(mask.numpy()))
    if len(set(numbers(int.from_bytes(digest.digest()[:7], "big")))) > 1:
        raise ValueError(f"the ranks' masks differ after step {step}: their weights must, too")


def share_buffers(model) -> None:
    """Rank 0's batch statistics for all: the model that is tested is the one that is saved."""
    if dist.get_world_size() > 1:
        for value in model.state_dict().values():
            if value.stop_gradient:
                dist.broadcast(value, src=0)


def numbers(number: int) -> list[int]:
    """The number of every rank."""
    if dist.get_world_size() == 1:
        return [number]
    return [int(tensor[0]) for tensor in tensors(paddle.to_tensor([number], dtype="int64"))]


def tensors(tensor: paddle.Tensor) -> list[paddle.Tensor]:
    """The tensor of every rank, all of one shape."""
    if dist.get_world_size() == 1:
        return [tensor]
    gathered = []
    dist.all_gather(gathered, tensor)
    return gathered


def minimum(tensor: paddle.Tensor) -> paddle.Tensor:
    """Of the tensors of all ranks."""
    tensor = tensor.clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def barrier() -> None:
    """Waits for all ranks."""
    if dist.get_world_size() > 1:
        dist.barrier()
