"""A network as a program of `torch.export`: one file that runs without this package.

    about = {"labels.json": "", "preprocessing.json": "", "window.json": ""}
    program = torch.export.load("model.pt2", extra_files=about)  # fills `about`
    logits = program.module()(image)                             # (B, in, X, Y, Z)

B, X, Y and Z are free; X, Y and Z must be multiples of the network's divisor ("divisor.json"), two
at least. Weights are parameters, so the module moves to a GPU by `.to("cuda")`.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from attunet3d.models import Network

LARGEST = 4096  # multiples of the divisor, or scans in a batch; a bound that torch asks for


def exported_bytes(network: Network, about: Mapping[str, str]) -> bytes:
    """Return the content of a `.pt2` file.

    Args:
        network: In eval mode, on the CPU; not modified.
        about: JSON texts by name; each becomes the extra file `name.json`.
    """
    sizes = [2 * step for step in network.divisor]
    image = torch.zeros(1).expand(2, network.in_channels, *sizes)  # 2: torch takes 1 as fixed
    free = {0: torch.export.Dim("batch", max=LARGEST)}
    for axis, (name, step) in enumerate(zip("xyz", network.divisor, strict=True), 2):
        free[axis] = step * torch.export.Dim(name, min=2, max=LARGEST)
    buffer = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(network, (image,), dynamic_shapes=(free,))
        _forget_origin(program.graph_module)
    torch.export.save(program, buffer, extra_files={f"{n}.json": t for n, t in about.items()})
    return buffer.getvalue()


def exported_logits(path: Path, image: Tensor) -> Tensor:
    """Run the program in a file on `image` (B, in, X, Y, Z), on the CPU."""
    module = torch.export.load(path).module()
    with torch.no_grad():
        return module(image)  # type: ignore[no-any-return]


def _forget_origin(graph: torch.fx.GraphModule) -> None:
    """Remove where each operation came from: Python stacks with folders of this machine."""
    for node in graph.graph.nodes:
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(name, None)
