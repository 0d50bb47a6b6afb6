"""The built-in tasks. Importing this package enters all of them into the catalogue."""

from importlib import import_module
from pkgutil import walk_packages

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
