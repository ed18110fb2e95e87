"""A network as TorchScript: one file that runs without this package, from Python and from C++.

    about = {"labels.json": "", "preprocessing.json": "", "window.json": ""}
    network = torch.jit.load("model.ts", map_location="cuda", _extra_files=about)  # fills `about`
    logits = network(image)  # (B, 1, X, Y, Z), any size
    logits, attention = network.forward_with_attention(image)

The network is frozen: weights are constants, so it goes to a device by `map_location`, not `to`.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from attunet3d.models import AttentionUNet3D


def torchscript_bytes(network: AttentionUNet3D, about: Mapping[str, str]) -> bytes:
    """The file's content.

    Args:
        network: In eval mode; only read.
        about: JSON texts by name; each becomes the extra file `name.json`.
    """
    buffer = io.BytesIO()
    with _quiet():
        scripted = torch.jit.script(network)
        frozen = torch.jit.freeze(scripted, preserved_attrs=["forward_with_attention"])
        extra = {f"{name}.json": text for name, text in about.items()}
        torch.jit.save(frozen, buffer, _extra_files=extra)
    return _without_paths(buffer)


def torchscript_logits(path: Path, image: Tensor) -> Tensor:
    """What the network in a file makes of `image` (B, 1, X, Y, Z), on the CPU."""
    with _quiet(), torch.inference_mode():
        network: Callable[[Tensor], Tensor] = torch.jit.load(  # type: ignore[no-untyped-call]
            path, map_location="cpu"
        )
        return network(image)


def _without_paths(file: io.BytesIO) -> bytes:
    """The archive without its notes for debuggers, which name folders of this machine."""
    result = io.BytesIO()
    with ZipFile(file) as old, ZipFile(result, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(entry.filename, old.read(entry))
    return result.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    # torch 2.10 and later: "`torch.jit.script` is deprecated …" once a submodule. What is wanted
    # here is TorchScript by name; torch.export has no runtime in MONAI Deploy yet.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield
