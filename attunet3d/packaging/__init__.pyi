from .formats import ENDINGS as ENDINGS
from .formats import package as package
