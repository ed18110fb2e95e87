"""A cohort on a Ray cluster: an actor per GPU, each with the model, and one queue of scans.

The actors run `engine_process.serve_scans`, as the processes of one machine do. One that dies is
replaced by Ray wherever there is room. All machines must have the same attunet3d, and see MODEL,
INPUT and OUT_DIR under the same paths.
"""

import contextlib
import importlib.util
import logging
import math
import os
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from attunet3d.cohort.call import CohortCall, Events, ModelOptions
from attunet3d.cohort.dispatch import Dispatcher
from attunet3d.cohort.engine_process import WorkerOptions, serve_scans
from attunet3d.cohort.pool import Pool, PoolWorker
from attunet3d.cohort.run import Engine
from attunet3d.cohort.scan_loop import Item
from attunet3d.core import DependencyError, DeviceError, SettingsError, UserError, one_line

CONNECT_S = 10.0
PATIENCE_S = 1.0  # after which waiting looks at signals again


@dataclass(frozen=True)
class Place:
    """What one worker takes of its machine.

    Args:
        device: "cpu" or "cuda"; which GPU that is, Ray says.
        cpus: Cores; below one where workers outnumber them.
        neighbours: Workers on the machine, this one included.
    """

    device: str
    cpus: float
    neighbours: int


def on_ray(model: ModelOptions, call: CohortCall, address: str | None) -> Engine:
    """The engine whose workers are actors of a Ray cluster.

    Args:
        model: What each loads.
        call: What they do.
        address: Of the cluster; None: what the variable RAY_ADDRESS says, else a cluster of this
            machine alone, which is started and ends with the call.

    Raises:
        DependencyError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise DependencyError(
            "--engine ray needs the package ray", cure="pip install 'attunet3d[ray]'"
        )

    def run(found: Mapping[str, list[Path]], events: Events) -> None:
        """Segment the scans on the cluster."""
        there = {case_id: [path.absolute() for path in paths] for case_id, paths in found.items()}
        options = _absolute(model, call)
        with _cluster(address) as machines:
            places = workers(model.device, machines)[: max(1, len(found))]
            Pool(
                len(places),
                lambda number: _Remote(options, places[number], number),
                _wait,
                Dispatcher(there, events),
                call.out_dir,
            ).run()

    return run


def workers(device: str | None, machines: Sequence[Mapping[str, float]]) -> list[Place]:
    """The workers on a cluster.

    Args:
        device: "cuda": one per GPU; "cpu": one per machine; None: the former, or the latter where
            there is no GPU. Several, such as "cpu,cpu": so many.
        machines: What each has, by Ray's names: "CPU" and "GPU".

    Raises:
        SettingsError: The device has another name.
        DeviceError: There is no GPU.

    Example:
        >>> workers(None, [{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}])[3]
        Place(device='cuda', cpus=8, neighbours=2)
        >>> workers("cpu,cpu", [{"CPU": 4}])
        [Place(device='cpu', cpus=2, neighbours=2), Place(device='cpu', cpus=2, neighbours=2)]
    """
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    names = (device or ("cuda" if sum(gpus) else "cpu")).split(",")
    name = names[0]
    if set(names) not in ({"cpu"}, {"cuda"}):
        raise SettingsError(
            f"--device {device}: Ray chooses the GPU of each worker",
            value=device,
            cure="write cuda or cpu, or leave it out",
        )
    if name == "cuda" and not sum(gpus):
        raise DeviceError("--device cuda: the Ray cluster has no GPU", cure="use --device cpu")
    everywhere = sum(gpus) if name == "cuda" else len(machines)
    count = len(names) if len(names) > 1 else everywhere
    neighbours = max(gpus) if name == "cuda" else math.ceil(count / len(machines))
    cores = min(machine.get("CPU", 1) for machine in machines) / neighbours
    return [Place(name, math.floor(cores) if cores >= 1 else cores, neighbours)] * count


def _absolute(model: ModelOptions, call: CohortCall) -> WorkerOptions:
    """What a process with another working directory needs."""
    cases = [(case_id, path.absolute()) for case_id, path in call.cases]
    models = [str(Path(path).absolute()) for path in model.models]
    locator = model.locator and str(Path(model.locator).absolute())
    return WorkerOptions(
        replace(model, models=models, locator=locator),
        replace(call, cases=cases, out_dir=call.out_dir.absolute()),
    )


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[list[dict[str, float]]]:
    """Join the cluster, or start one; give what its machines have."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's makers need not know
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address, include_dashboard=None, log_to_driver=False, configure_logging=False)
    except Exception as error:  # Ray raises many kinds
        words = one_line(error)[:200]
        raise DeviceError(
            f"--address {address}: no Ray cluster ({words})",
            value=address,
            cure="see that it runs, by `ray status` on one of its machines",
        ) from None
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


class _Actor:
    """The process of a worker: a thread that segments, and queues between it and Ray's calls."""

    def __init__(self, options: WorkerOptions) -> None:
        self._told: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        threading.Thread(target=self._serve, args=(options,), daemon=True).start()

    def _serve(self, options: WorkerOptions) -> None:
        try:
            serve_scans(options, self)
        except UserError as error:
            self.tell("error", error)
        except BaseException:  # as of a process of one machine, which would end
            traceback.print_exc()
            os._exit(1)

    def hear(self) -> list[tuple[Any, ...]]:
        """For Ray: what was told since the last call, at least one message."""
        messages = [self._told.get()]
        while not self._told.empty():
            messages.append(self._told.get())
        return messages

    def answer(self, item: Item | None) -> None:
        """For Ray: answer `take`."""
        self._items.put(item)

    def take(self, *, idle: bool) -> Item | None:
        """See `Link`."""
        self.tell("take", idle)
        return self._items.get()

    def tell(self, event: str, *facts: Any) -> None:
        """See `Link`."""
        self._told.put((event, *facts))


class _Remote(PoolWorker):
    """An actor, as the dispatching process sees it."""

    def __init__(self, options: WorkerOptions, place: Place, number: int) -> None:
        import ray

        super().__init__(number, place.device)
        options = replace(
            options,
            model=replace(options.model, device=place.device),
            neighbours=place.neighbours,
            on_this_cpu=place.neighbours if place.device == "cpu" else 1,
        )
        gpus = int(place.device == "cuda")
        # One thread waits in `hear` while another takes answers.
        kind = ray.remote(max_concurrency=2, num_cpus=place.cpus, num_gpus=gpus)(_Actor)
        self._actor = kind.remote(options)
        self.next = self._actor.hear.remote()

    def hear(self) -> list[tuple[Any, ...]]:
        """Messages of the actor; raises EOFError when it has died."""
        import ray

        try:
            messages: list[tuple[Any, ...]] = ray.get(self.next)
        except ray.exceptions.RayError as error:
            raise EOFError from error
        self.next = self._actor.hear.remote()
        return messages

    def answer(self, item: Item | None) -> None:
        self._actor.answer.remote(item)

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


def _wait(among: Sequence[_Remote]) -> list[PoolWorker]:
    import ray

    found, _ = ray.wait([worker.next for worker in among], timeout=PATIENCE_S)
    return [worker for worker in among if worker.next in found]
