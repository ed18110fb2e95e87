"""A network as ONNX, for runtimes without torch; the file says what its classes and voxels mean.

Input `image` (batch, 1, x, y, z) float32, preprocessed, of the window's size; output `logits`
(batch, classes, x, y, z). Entries `labels`, `preprocessing` and `window` of the model's
`metadata_props` hold JSON.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from attunet3d.core import DependencyError, Float32s, Size
from attunet3d.models import AttentionUNet3D

NEEDED = ("onnx", "onnxscript")
TALKER = "torch.onnx._internal.exporter._registration"  # says that torchvision is not installed


def onnx_bytes(network: AttentionUNet3D, window: Size, about: Mapping[str, str]) -> bytes:
    """The file's content, which the ONNX checker has seen.

    Args:
        network: In eval mode, on the CPU; only read.
        window: Voxels of the input along x, y, z.
        about: JSON texts by name, for `metadata_props`.

    Raises:
        DependencyError: onnx or onnxscript is not installed.
    """
    for name in NEEDED:
        _require(name)
    onnx = import_module("onnx")
    # Two windows, so that the batch is not taken for a constant; one number in memory.
    image = torch.zeros(1).expand(2, 1, *window)
    with _quiet():
        program = torch.onnx.export(
            network,
            (image,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_origin(model.graph)
    onnx.helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def onnx_logits(model: bytes, image: Float32s) -> Float32s | None:
    """What a runtime makes of `image` (B, 1, x, y, z), on the CPU; None: there is no runtime."""
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
            f"--format onnx needs the package {name}: pip install onnx onnxscript onnxruntime"
        ) from None


def _forget_origin(graph: Any) -> None:
    """Take out where each node came from: Python stacks with folders of this machine."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    talker = logging.getLogger(TALKER)
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13's exporter copies a class of its own that it has deprecated.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        talker.setLevel(level)
