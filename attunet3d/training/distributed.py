"""The processes of one run, as `torchrun` starts them: which one this is, what they exchange.

Every process holds the network on a device of its own and takes its share of each batch; the first
alone writes. Without `torchrun` there is one process, and all that is here costs nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from attunet3d.core import UserError, log, machine

PATIENCE = timedelta(hours=24)  # of those that wait for the cache; `torchrun` watches over them
P = ParamSpec("P")
T = TypeVar("T")
_apart = False  # whether each process trains by itself
_messages: Any = None  # the gloo group of numbers and objects; gradients go by the default group


@contextmanager
def process_group(device_name: str | None) -> Iterator[torch.device]:
    """Join the processes of the run, and give the device of this one.

    Gradients go by NCCL between GPUs, process n of a machine having its n-th, and by gloo else.

    Args:
        device_name: "cpu" or "cuda"; None: CUDA where there is one.

    Raises:
        DeviceError: The device is not there.
    """
    global _messages
    device = machine.pick_device(device_name, training=True)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = machine.pick_device(f"cuda:{os.environ['LOCAL_RANK']}", training=True)
        torch.cuda.set_device(device)
    _join("nccl" if device.type == "cuda" else "gloo")
    _messages = dist.new_group(backend="gloo", timeout=PATIENCE)
    if not is_first():
        log.only_errors()
    try:
        yield device
    finally:
        _messages = None
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Join the default group, under keys of this start alone.

    A restarted `torchrun --standalone` keeps its store, and with it the addresses of processes that
    have ended, to which some of the new ones would connect (seen with torch 2.13).
    """
    store, number, size = next(rendezvous("env://", timeout=PATIENCE))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"start_{start}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, timeout=PATIENCE, world_size=size, rank=number, store=store)


@contextmanager
def apart() -> Iterator[None]:
    """Let each process train by itself: within the block it is the only one."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def parted() -> bool:
    """Whether other processes work on other trainings."""
    return _messages is not None and _apart


def rank() -> int:
    """The number of this process, from 0."""
    return int(dist.get_rank()) if _messages is not None and not _apart else 0


def world_size() -> int:
    """The number of processes."""
    return int(dist.get_world_size()) if _messages is not None and not _apart else 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def on_one_device(device: torch.device) -> int:
    """The number of processes that share the memory of `device`: those of a machine on its CPU."""
    alone = device.type != "cpu" or _messages is None
    return 1 if alone else int(os.environ["LOCAL_WORLD_SIZE"])


def restarted() -> bool:
    """Whether `torchrun` has started the processes anew after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def share(count: int, index: int | None = None) -> range:
    """The items of `count` that fall to process `index` (None: to this one); sizes differ by 1.

    Example:
        >>> share(5)
        range(0, 5)
    """
    index, size = rank() if index is None else index, world_size()
    return range(index * count // size, (index + 1) * count // size)


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Let the first process call `function` while the others wait; its result goes to all.

    The arguments must be equal in all processes, and the result one that can be pickled. When it
    raises an error, all processes end, and the first tells why.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns in the first process."""
        if world_size() == 1:
            return function(*args, **kwargs)
        box: list[Any] = [None, True]  # the result, and whether there is none
        try:
            if is_first():
                box = [function(*args, **kwargs), False]
        finally:
            dist.broadcast_object_list(box, 0, _messages)
        if box[1]:
            raise SystemExit(2)
        return cast(T, box[0])

    return call


@contextmanager
def held_by_first(make: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Let the first process enter what `make` gives, such as a lock, and hold it for all."""

    @by_first
    def enter() -> None:
        stack.enter_context(make())

    with ExitStack() as stack:
        enter()
        yield


def total(value: float) -> float:
    """The sum of all processes' values."""
    return _reduced(value, dist.ReduceOp.SUM)


def largest(value: float) -> float:
    """The largest of all processes' values."""
    return _reduced(value, dist.ReduceOp.MAX)


def _reduced(value: float, operation: Any) -> float:
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor, operation, _messages)
    return float(tensor)


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, those of the first one first."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items, _messages)
    return [item for part in parts for item in part]


def replicated(network: nn.Module, device: torch.device) -> nn.Module:
    """The network whose backward pass averages gradients over the processes."""
    if world_size() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    # A network of two levels has no gate for its gating signal, and strangers' have more of that.
    return DistributedDataParallel(network, devices, find_unused_parameters=True)


def share_buffers(network: nn.Module) -> None:
    """Give all processes the first one's buffers, such as BatchNorm's running statistics."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def refuse_idle_processes(batch_size: int | None) -> None:
    """Refuse a batch with fewer patches than there are processes.

    Raises:
        UserError: There are fewer.
    """
    if batch_size is not None and batch_size < world_size():
        raise UserError(
            f"training.batch_size {batch_size}: has fewer patches than there are processes"
            f" ({world_size()})",
            value=batch_size,
            cure=f"set training.batch_size={world_size()} or more, plan for as many processes in"
            " another file by --plan, or start fewer processes",
        )
