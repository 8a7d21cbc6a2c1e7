"""Whether the trackers that ``trainer.report_to`` names exist and are installed, before any loading."""

from __future__ import annotations

from transformers.integrations import integration_utils

from hf_llm_recipes.errors import MissingExtraError, did_you_mean

EXTRA = ("tensorboard", "trackio")  # of the extra `trackers`
UNLISTED = "flyte"  # transformers does not say whether it is installed


def check_trackers(report_to: str | list[str] | None) -> None:
    """Checks names as ``trainer.report_to`` has them.

    Raises:
        ValueError: no such tracker, or its package is not installed.
        MissingExtraError: the extra that brings it is not installed.
    """
    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    installed = [*integration_utils.get_available_reporting_integrations(), UNLISTED]
    named = [report_to] if isinstance(report_to, str) else report_to or []
    for name in named:
        if name in installed or (name in ("none", "all") and report_to == name):
            continue
        if name not in known:
            raise ValueError(
                f"report_to: unknown tracker `{name}`{did_you_mean(name, known)}; allowed: none, all, "
                + ", ".join(known)
            )
        if name in EXTRA:
            raise MissingExtraError(name, "trackers")
        raise ValueError(f"report_to: the package of `{name}` is not installed")
