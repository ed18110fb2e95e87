from . import package as package
