"""Names for the arrays that many rooms pass on, by what a number in them is."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
LabelMap = npt.NDArray[np.uint8]
