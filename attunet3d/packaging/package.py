"""A trained model handed to other programs: as a MONAI bundle, as ONNX, as TorchScript.

Whatever is written is loaded again by the library that will run it, and its logits on a random
window are held to the network's, before it gets its name: nothing wrong is handed out.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from attunet3d.core import ModelError, Size, WriteError, whole_file
from attunet3d.models import Checkpoint, load_model
from attunet3d.packaging import bundle, onnx_model, torchscript_model

ENDINGS = {"bundle": "", "onnx": ".onnx", "torchscript": ".ts"}
RELATIVE_ERROR = 1e-4  # of the largest logit; float32 in another order makes 1e-6


def package(source: Path, out: Path, form: str) -> tuple[Path, list[str]]:
    """Pack a model.

    Args:
        source: A run folder or a `.safetensors` file.
        out: What to write; the format's ending is added where it is missing.
        form: "bundle", "onnx" or "torchscript".

    Returns:
        What was written, and warnings.

    Raises:
        ModelError: `out` is there already or no name, the model has no window, or what was
            written gives other logits than the model.
        ModelError: The model cannot be read.
        DependencyError: A package that ONNX needs is not installed.
        ModelError: A label's name cannot stand in a bundle.
        WriteError: The disk is full or the folder read-only.
    """
    if out.name in ("", ".."):
        raise ModelError(f"{out}: is a folder; name a new file or folder")
    if not out.name.endswith(ENDINGS[form]):
        out = out.parent / (out.name + ENDINGS[form])
    if os.path.lexists(out):
        raise ModelError(f"{out}: is there already; delete it or name another")
    model = load_model(source)
    window = model.config.window
    if window is None:
        raise ModelError(f"{model.path}: holds no window; train with training.patch_size=[x,y,z]")
    whole_file.make_folder(out.parent)
    write: Callable[[Path, Checkpoint, Size], list[str]] = {
        "bundle": _bundle,
        "onnx": _onnx,
        "torchscript": _torchscript,
    }[form]
    return out, write(out, model, window)


def _bundle(out: Path, model: Checkpoint, window: Size) -> list[str]:
    with _new_folder(out) as folder:
        bundle.write_bundle(folder, model, window)
        image, wanted = _question(model, window)
        with torch.inference_mode():
            _compare(out, bundle.bundle_network(folder)(image), wanted)
    inference = model.config.inference
    left_out = {"inference.mirror": inference.mirror, "inference.mode": inference.mode == "whole"}
    return [
        f"{name}={getattr(inference, name.partition('.')[2])} is nothing that the bundle does"
        for name, is_set in left_out.items()
        if is_set
    ]


def _torchscript(out: Path, model: Checkpoint, window: Size) -> list[str]:
    def check(written: Path) -> None:
        image, wanted = _question(model, window)
        _compare(out, torchscript_model.torchscript_logits(written, image), wanted)

    content = torchscript_model.torchscript_bytes(model.network, _about(model, window))
    whole_file.write_bytes(out, content, check)
    return []


def _onnx(out: Path, model: Checkpoint, window: Size) -> list[str]:
    warnings = []

    def check(written: Path) -> None:
        image, wanted = _question(model, window)
        logits = onnx_model.onnx_logits(written.read_bytes(), image.numpy())
        if logits is None:
            warnings.append(f"{out}: its logits were not looked at; pip install onnxruntime")
        else:
            _compare(out, torch.from_numpy(logits), wanted)

    content = onnx_model.onnx_bytes(model.network, window, _about(model, window))
    whole_file.write_bytes(out, content, check)
    return warnings


def _about(model: Checkpoint, window: Size) -> Mapping[str, str]:
    """What a program must know to use the network, as JSON texts."""
    facts = {
        "labels": {str(value): name for value, name in model.labels.items()},
        "preprocessing": asdict(model.config.preprocessing),
        "window": window,
    }
    return {name: json.dumps(fact) for name, fact in facts.items()}


def _question(model: Checkpoint, window: Size) -> tuple[Tensor, Tensor]:
    """A random window (1, 1, x, y, z), and the logits that the network gives for it."""
    image = torch.randn(1, 1, *window, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return image, model.network(image)


def _compare(out: Path, found: Tensor, wanted: Tensor) -> None:
    """Refuse logits that are not the network's.

    Raises:
        ModelError: They differ by more than rounding, or are not finite.
    """
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    if not error <= RELATIVE_ERROR:
        raise ModelError(
            f"{out}: not written, as its logits would differ from the model's by {error:.2g} of the"
            f" largest; at most {RELATIVE_ERROR} is rounding; try another format or torch version"
        )


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name `out` when all has gone well, and else vanishes."""
    try:
        beside = Path(tempfile.mkdtemp(prefix=whole_file.PREFIX, dir=out.parent))
        try:
            folder = beside / out.name  # not `beside` itself, which others may not read
            folder.mkdir()
            yield folder
            os.rename(folder, out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise WriteError(f"{out}: cannot be written ({error.strerror})") from error
