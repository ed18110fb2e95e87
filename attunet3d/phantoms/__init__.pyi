from . import dataset as dataset
from .cohort import COHORTS as COHORTS
from .cohort import Cohort as Cohort
from .dataset import LABELS as LABELS
from .dataset import make_phantom as make_phantom
from .dataset import write_phantoms as write_phantoms
