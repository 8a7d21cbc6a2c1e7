"""How much electricity a training takes, and how much CO2e that is, without a network."""

from __future__ import annotations

import importlib
import logging
from typing import Any, ClassVar

from transformers.trainer_callback import ExportableState

from hf_llm_recipes.callbacks._figures import Figures, InMetrics
from hf_llm_recipes.errors import MissingExtraError
from hf_llm_recipes.registry import CALLBACKS

EVERY = 15.0  # seconds between two readings of power
MEASURED = ("Rapl", "Emi", "Power Gadget", "AppleSiliconChip", "Raspberry")  # as codecarbon names its sources
WORLD = "the world's average, no country given"


@CALLBACKS.register
class Energy(Figures, InMetrics, ExportableState):
    """Adds ``energy/kwh`` and ``energy/co2e_kg`` to each log of the training loss, and to ``metrics.json``.

    codecarbon's offline tracker (extra ``energy``) reads power every 15 seconds: of the whole machine, from
    the beginning of the training to its end, evaluations included; what else runs there is in it. Where the
    processor has no counter that may be read, its power is estimated from load and TDP, as memory's always
    is; ``how`` says which. CO2e is by the electricity mix of a country that the package has a table of.
    Nothing is written and nothing fetched.

    A resumed training goes on with the figures of its checkpoint: what was spent after that is not in them.
    Of several machines the figures are those of the first.

    Args:
        country: ISO 3166-1 alpha-3 code, e.g. ``FRA``. None: the world's average mix, and the figures say so.

    Raises:
        ValueError: no such country.
        MissingExtraError: codecarbon is not installed.
    """

    section: ClassVar[str] = "energy"

    def __init__(self, country: str | None = None) -> None:
        if country is not None and country not in (known := _countries()):
            raise ValueError(
                f"country is {country!r}; allowed: an ISO 3166-1 alpha-3 code that codecarbon has a mix of: "
                + ", ".join(known)
            )
        _codecarbon("codecarbon")
        self.country = country
        self.kwh = self.co2e_kg = 0.0  # until the last reading
        self.how = ""
        self._tracker: Any = None
        self._reading: Any = None
        self._before = (0.0, 0.0)  # of the training that was gone on from

    def state(self) -> dict[str, Any]:
        """The figures, for the checkpoint."""
        self._read()
        return {
            "args": {"country": self.country},
            "attributes": {"kwh": self.kwh, "co2e_kg": self.co2e_kg, "how": self.how},
        }

    def report(self) -> dict[str, Any]:
        """Energy and CO2e, by which country's mix, and how they were found."""
        return {
            "kwh": self.kwh,
            "co2e_kg": self.co2e_kg,
            "country": self.country or WORLD,
            "how": self.how,
        }

    def figures(self, args, state, logs):
        """Since the training began."""
        self._read()
        return {"energy/kwh": self.kwh, "energy/co2e_kg": self.co2e_kg} if self._reading else {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts to read power."""
        self._stop()  # of a training that ended with an error
        if state.global_step == 0:
            self.kwh = self.co2e_kg = 0.0
        self._before = self.kwh, self.co2e_kg
        if state.is_world_process_zero:
            self._tracker, self._reading = _started(self.country)
            self.how = how(self._tracker)

    def on_train_end(self, args, state, control, **kwargs):
        """Takes the last reading."""
        self._read()
        self._stop()

    def _read(self) -> None:
        if self._tracker is None:
            return
        self._tracker.flush()
        total = self._reading.total
        self.kwh = self._before[0] + total.energy_consumed
        self.co2e_kg = self._before[1] + total.emissions

    def _stop(self) -> None:
        if self._tracker is not None:
            self._tracker.stop()
        self._tracker = self._reading = None


def _codecarbon(module: str) -> Any:
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it writes of everything it tries
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError("codecarbon", "energy") from error


def _countries() -> list[str]:
    return sorted(_codecarbon("codecarbon.input").DataSource().get_global_energy_mix_data())


def _started(country: str | None) -> tuple[Any, Any]:
    """A tracker that is running, and where it leaves its figures."""

    class Reading(_codecarbon("codecarbon.output_methods.base_output").BaseOutput):
        """Keeps the figures in place of a file."""

        def out(self, total, delta):
            self.total = total

    reading = Reading()
    tracker = _codecarbon("codecarbon").OfflineEmissionsTracker(
        country_iso_code=country,
        measure_power_secs=EVERY,
        output_methods=[],
        output_handlers=[reading],
        tracking_mode="machine",
        allow_multiple_runs=True,  # no lock file in the folder for temporary files
        log_level="critical",
    )
    tracker.start()
    tracker.flush()
    return tracker, reading


def how(tracker: Any) -> str:
    """Says of each part of the machine whether its power is measured or estimated."""
    said = ["the whole machine"]
    for part in tracker._conf["hardware"]:
        if "RAM" in part and "Raspberry" not in part:
            said.append("memory estimated from its size")
        elif part.startswith("CPU(") and not any(name in part for name in MEASURED):
            said.append(f"processor estimated from its TDP, not measured: {part}")
        else:
            said.append(f"measured: {part}")
    return "; ".join(said)
