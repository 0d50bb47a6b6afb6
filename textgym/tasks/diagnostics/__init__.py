"""Diagnostic tasks: tiny vocabularies, one capability each, the exact optimum within reach of enumeration."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
