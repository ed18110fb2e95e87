"""A trained model for other programs: as a MONAI bundle, as ONNX, as a program of torch.export.

Whatever is written is loaded again by the library that will run it, and its logits on a random
window are compared with the network's, before it gets its name.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attunet3d.core import ModelError, Size, WriteError, progress, whole_file
from attunet3d.inference import load_as_one
from attunet3d.models import Checkpoint
from attunet3d.packaging import bundle, bundle_training, exported_program, onnx_model

ENDINGS = {"bundle": "", "onnx": ".onnx", "exported": ".pt2"}
RELATIVE_ERROR = 1e-4  # of the largest logit; float32 in another order makes 1e-6


def package(source: Path, out: Path, form: str) -> tuple[Path, list[str]]:
    """Write a model in another format.

    Args:
        source: A run folder, a cross-validation or a `.safetensors` file.
        out: What to write; the format's ending is added where it is missing.
        form: "bundle", "onnx" or "exported".

    Returns:
        What was written, and warnings.

    Raises:
        ModelError: The model cannot be read, has no window, cannot be a bundle, or what was
            written gives other logits.
        DependencyError: A package that ONNX needs is not installed.
        WriteError: `out` exists or is not a name, the disk is full or the folder read-only.
    """
    if out.name in ("", ".."):
        raise WriteError("is a folder", path=out, cure="name a new file or folder")
    if not out.name.endswith(ENDINGS[form]):
        out = out.parent / (out.name + ENDINGS[form])
    if os.path.lexists(out):
        raise WriteError("exists already", path=out, cure="delete it or name another")
    write: dict[str, Callable[[Path, Checkpoint, Size], list[str]]] = {
        "bundle": _write_bundle,
        "onnx": _write_onnx,
        "exported": _write_exported,
    }
    with progress(2, "package", "step") as bar:
        model = load_as_one(source)
        window = model.config.window
        if window is None:
            cure = "train with training.patch_size=[x,y,z]"
            raise ModelError("holds no window", path=model.path, cure=cure)
        whole_file.make_folder(out.parent)
        bar.update()
        with bar.item():
            return out, write[form](out, model, window)


def _write_bundle(out: Path, model: Checkpoint, window: Size) -> list[str]:
    with _new_folder(out) as folder:
        bundle.write_bundle(folder, model, window)
        image, wanted = _example(model, window)
        with torch.inference_mode():
            _compare(out, bundle.bundle_network(folder)(image), wanted)
    warnings = []
    if model.config.inference.mode == "whole":
        warnings.append("inference.mode=whole: the bundle computes windows, as =window does")
    if (what := bundle_training.refusal(model)) is not None:
        warnings.append(f"{what}: the bundle has no train.json, so it cannot be trained further")
    return warnings


def _write_exported(out: Path, model: Checkpoint, window: Size) -> list[str]:
    def check(written: Path) -> None:
        divisor = model.network.divisor
        x, y, z = (max(2, -(-n // step)) * step for n, step in zip(window, divisor, strict=True))
        image, wanted = _example(model, (x, y, z))
        _compare(out, exported_program.exported_logits(written, image), wanted)

    content = exported_program.exported_bytes(model.network, _about(model, window))
    whole_file.write_bytes(out, content, check)
    return []


def _write_onnx(out: Path, model: Checkpoint, window: Size) -> list[str]:
    warnings = []

    def check(written: Path) -> None:
        image, wanted = _example(model, window)
        logits = onnx_model.onnx_logits(written.read_bytes(), image.numpy())
        if logits is None:
            warnings.append(f"{out}: its logits were not verified; pip install onnxruntime")
        else:
            _compare(out, torch.from_numpy(logits), wanted)

    content = onnx_model.onnx_bytes(model.network, _about(model, window))
    whole_file.write_bytes(out, content, check)
    return warnings


def _about(model: Checkpoint, window: Size) -> Mapping[str, str]:
    """What a program must know to use the network, as JSON texts."""
    facts: dict[str, Any] = {
        "labels": {str(value): name for value, name in model.labels.items()},
        "preprocessing": asdict(model.config.preprocessing),
        "window": window,
        "divisor": model.network.divisor,
        **({"regions": model.config.regions} if model.config.regions else {}),
    }
    return {name: json.dumps(fact) for name, fact in facts.items()}


def _example(model: Checkpoint, size: Size) -> tuple[Tensor, Tensor]:
    """A random image (1, 1, x, y, z), and the network's logits for it."""
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
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
            f"not written, as its logits would differ from the model's by {error:.2g} of the"
            f" largest; at most {RELATIVE_ERROR} is rounding",
            path=out,
            value=error,
            cure="try another format or torch version",
        )


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill; it becomes `out` when all has gone well, and else vanishes."""
    with whole_file.writing(out):
        beside = Path(tempfile.mkdtemp(prefix=whole_file.PREFIX, dir=out.parent))
        try:
            folder = beside / out.name  # not `beside` itself, which others may not read
            folder.mkdir()
            yield folder
            os.rename(folder, out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
