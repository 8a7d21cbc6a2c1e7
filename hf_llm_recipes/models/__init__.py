"""Custom architectures: importing this folder registers each file's with transformers' Auto classes.

Where peft is installed it also learns their default LoRA targets, queries and values as it has for
published architectures.
"""

import importlib
import pkgutil

from transformers.utils import is_peft_available

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

if is_peft_available():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as _TARGETS

    for _family in ("encoder", "decoder", "encoder_decoder", "vision"):
        _TARGETS.setdefault(f"hlr_{_family}", ["q_proj", "v_proj"])
