from .core import Config as Config
from .core import NetworkConfig as NetworkConfig
from .core import PreprocessingConfig as PreprocessingConfig
from .core import TrainingConfig as TrainingConfig
from .core import UserError as UserError
from .imaging import Grid as Grid
from .imaging import Segmentation as Segmentation
from .imaging import Volume as Volume
from .imaging import read_volume as read_volume
from .inference import Predictor as Predictor
from .models import AttentionUNet3D as AttentionUNet3D
from .models import GridAttentionGate as GridAttentionGate
from .models import build_network as build_network
from .models import from_published_state_dict as from_published_state_dict
from .models import published_network as published_network
from .packaging import ToNetworkGridd as ToNetworkGridd
from .packaging import ToSourceGridd as ToSourceGridd
from .packaging import WindowInferer as WindowInferer
from .training import build_loss as build_loss

__version__: str
