"""Callbacks for any ``Trainer``: ``from hf_llm_recipes.callbacks import EMA, Energy, bind``.

The classes are loaded when first used; ``bind(trainer)`` makes those work that need the Trainer itself.
"""

import importlib

from hf_llm_recipes.registry import CALLBACKS


def __getattr__(name):
    if name == "bind":
        return importlib.import_module(f"{__name__}._bound").bind
    for stem in CALLBACKS.names():
        if stem.replace("_", "") == name.lower() and stem != name:
            return CALLBACKS.get(stem)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
