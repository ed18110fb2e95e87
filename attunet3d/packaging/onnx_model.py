"""A network as ONNX, for runtimes without torch; the file says what its classes and voxels mean.

Input `image` (batch, 1, x, y, z) float32, preprocessed, of any size; output `logits` (batch,
classes, x, y, z). Entries `labels`, `preprocessing` and `window` of the model's `metadata_props`
hold JSON.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from attunet3d.core import DependencyError, Float32s
from attunet3d.models import Network

NEEDED = ("onnx", "onnxscript")
EXPORTER_LOG = (
    "torch.onnx._internal.exporter._registration"  # says that torchvision is not installed
)


def onnx_bytes(network: Network, about: Mapping[str, str]) -> bytes:
    """Return the content of a file that passes the ONNX checker.

    Args:
        network: In eval mode, on the CPU; not modified.
        about: JSON texts by name, for `metadata_props`.

    Raises:
        DependencyError: onnx or onnxscript is not installed.
    """
    for name in NEEDED:
        _require(name)
    onnx = import_module("onnx")
    # Sizes that the strides do not divide: padding and cropping are then part of the graph, and do
    # nothing where the strides do divide.
    sizes = [2 * step + 1 for step in network.divisor]
    image = torch.zeros(1).expand(2, network.in_channels, *sizes)  # 2: torch takes 1 as fixed
    free = dict.fromkeys((0, 2, 3, 4), torch.export.Dim.DYNAMIC)
    with _quiet():
        program = torch.onnx.export(
            network,
            (image,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(free,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_origin(model.graph)
    _name_sizes(model.graph)
    onnx.helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def onnx_logits(model: bytes, image: Float32s) -> Float32s | None:
    """Run a model on `image` (B, 1, x, y, z), on the CPU; None: no runtime is installed."""
    logits: Float32s
    if find_spec("onnxruntime"):
        runtime = import_module("onnxruntime")
        session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"image": image})
        return logits
    if find_spec("openvino"):
        core = import_module("openvino").Core()
        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 on CPUs that compute in it
        logits = core.compile_model(core.read_model(model), "CPU", exact)({"image": image})[
            "logits"
        ]
        return logits
    return None


def _require(name: str) -> None:
    try:
        import_module(name)
    except ImportError:
        raise DependencyError(
            f"--format onnx needs the package {name}",
            value=name,
            cure="pip install onnx onnxscript onnxruntime",
        ) from None


def _name_sizes(graph: Any) -> None:
    """Call the free sizes batch, x, y and z instead of what torch numbered them."""
    for part in (*graph.input, *graph.output):
        dims = part.type.tensor_type.shape.dim
        for axis, name in {0: "batch", 2: "x", 3: "y", 4: "z"}.items():
            dims[axis].dim_param = name


def _forget_origin(graph: Any) -> None:
    """Remove where each node came from: Python stacks with folders of this machine."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger(EXPORTER_LOG)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13's exporter copies a class of its own that it has deprecated.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        log.setLevel(level)
