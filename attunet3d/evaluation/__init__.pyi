from . import charts as charts
from . import figures as figures
from . import folder as folder
from . import metrics as metrics
from . import statistics as statistics
from .figures import Example as Example
from .metrics import dice as dice
