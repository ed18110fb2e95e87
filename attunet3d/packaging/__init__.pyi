from .formats import ENDINGS as ENDINGS
from .formats import package as package
from .monai_transforms import ToNetworkGridd as ToNetworkGridd
from .monai_transforms import ToSourceGridd as ToSourceGridd
from .window_inferer import WindowInferer as WindowInferer
