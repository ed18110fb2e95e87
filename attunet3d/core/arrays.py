"""Types of arrays that all rooms use, by the meaning of their elements."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
LabelMap = npt.NDArray[np.uint8]
