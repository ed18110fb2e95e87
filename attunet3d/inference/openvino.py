"""A network run by OpenVINO, which plans for the whole graph and outpaces torch on CPUs.

A graph is of one input shape, and takes some seconds to make: once for all windows of a run, but
once for each new size where the whole volume goes through in one pass.
"""

import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from attunet3d.core import DependencyError, DeviceError

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
GRAPHS = 2  # kept: of a full batch of windows and of what is left over in the last


def compiled(
    network: nn.Module, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """`network` as a function on the CPU; any thread may call it.

    Args:
        network: In eval mode, float32; such as `torch.export` takes.
        device: Must be the CPU.
        dtype: float32; or bfloat16, in which OpenVINO then computes where it sees fit.

    Raises:
        DependencyError: OpenVINO is not installed.
        DeviceError: The device is not a CPU.
    """
    if device.type != "cpu":
        raise DeviceError(
            f"inference.engine=openvino runs on CPUs, not on {device}",
            value=str(device),
            cure="use --device cpu, or --set inference.engine=torch",
        )
    openvino = _openvino()

    @lru_cache(maxsize=GRAPHS)
    def request(shape: torch.Size) -> Any:
        hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's and OpenVINO's about their own insides
            model = openvino.convert_model(_exported(network, shape), input=[list(shape)])
        return openvino.Core().compile_model(model, "CPU", hints).create_infer_request()

    lock = threading.Lock()

    def forward(x: Tensor) -> Tensor:
        values = x.detach().float().contiguous().numpy()
        with lock:  # a request has one set of buffers
            outputs = request(x.shape).infer({0: values}, share_inputs=True)
        return torch.from_numpy(outputs[0])

    return forward


def _openvino() -> ModuleType:
    try:
        import openvino
    except ImportError:
        raise DependencyError(
            "inference.engine=openvino needs the package openvino",
            cure="pip install attunet3d[openvino]",
        ) from None
    return openvino  # type: ignore[no-any-return]


def _exported(network: nn.Module, shape: torch.Size) -> torch.export.ExportedProgram:
    with torch.inference_mode(False), torch.no_grad():
        return torch.export.export(network, (torch.zeros(shape),))
