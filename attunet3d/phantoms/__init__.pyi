from . import dataset as dataset
from .dataset import LABELS as LABELS
from .dataset import make_phantom as make_phantom
from .dataset import write_phantoms as write_phantoms
