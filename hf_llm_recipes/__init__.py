"""One YAML file -> a trained, evaluated, Hub-ready transformer.

The public names are loaded when first used: ``import hf_llm_recipes`` imports no torch.
"""

import importlib
import os

os.environ.setdefault("USE_HUB_KERNELS", "0")  # compiled code from the Hub is code: nobody has asked for it

__version__ = "0.1.0"

_NAMES = {
    "Predictor": "predictor",
    "Recipe": "recipe",
    "Run": "run",
    "run": "run",
    "evaluate_run": "judging",
    "predict_file": "judging",
}
__all__ = ["Predictor", "Recipe", "Run", "__version__", "evaluate_run", "load", "predict_file", "run"]


def load(path, *, trust_code=False):
    """Returns the ``Predictor`` of a finished run: ``load("runs/mine").predict(["a text"])``."""
    return importlib.import_module("hf_llm_recipes.predictor").Predictor.load(path, trust_code=trust_code)


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__():
    return sorted(__all__)
