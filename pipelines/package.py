"""Write a trained model for other programs.

RUN_DIR is a run folder, a cross-validation (the mean of its folds) or a .safetensors file. OUT
becomes, by format:

bundle     a MONAI bundle, a folder; `python -m monai.bundle run` segments scans with it
onnx       OUT.onnx, the network for any input size; needs onnx and onnxscript
exported   OUT.pt2, the network for torch.export.load, for sizes that its strides divide

Labels, preprocessing and window are inside each. What was written is loaded again and its logits
are compared with the model's before it gets its name; an OUT that exists already is refused.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from attunet3d.core import command_line

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the format asked for."""
    parser = command_line.parser(__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    formats = ["bundle", "onnx", "exported"]
    parser.add_argument("--format", choices=formats, default="bundle", help="default: bundle")
    arguments = parser.parse_args(argv)

    from attunet3d.packaging import package  # torch comes with it; --help does without

    written, warnings = package(arguments.run_dir, arguments.out, arguments.format)
    for warning in warnings:
        _log.warning("%s", warning)
    print(f"{written}: {arguments.format}", file=sys.stderr)
    return 0
