from .core import Config as Config
from .core import UserError as UserError
from .imaging import Grid as Grid
from .imaging import Segmentation as Segmentation
from .imaging import Volume as Volume
from .imaging import read_volume as read_volume
from .inference import Predictor as Predictor
from .models import AttentionUNet3D as AttentionUNet3D
from .models import GridAttentionGate as GridAttentionGate

__version__: str
