"""Sends checkpoints to a branch on the Hub while the model is trained."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_llm_recipes import checkpoints, hub, secrets_scan
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.exact_resume import PROGRESS
from hf_llm_recipes.recipe import home_as_tilde
from hf_llm_recipes.registry import CALLBACKS

log = logging.getLogger("hf_llm_recipes")

# what loads a model; a checkpoint holds more, which only a training needs
LOADS = ("model*.safetensors", "adapter_model*.safetensors", "*.json", "*.py", "*.jinja", "*.txt", "*.model")
NOT = (checkpoints.STATE, checkpoints.MANIFEST, PROGRESS)


@CALLBACKS.register
class Push(TrainerCallback, ExportableState):
    """Pushes what loads the model of every n-th checkpoint, in one commit each, without optimizer and state.

    The branch belongs to it: files of the checkpoint before are replaced. The finished run is pushed by
    ``push_to_hub:`` or ``hf-llm-recipes push``, to the main branch. The token is huggingface_hub's; each file
    is searched for secrets. A push that fails is told, and the training goes on. Of several processes the
    first pushes.

    Args:
        repository: ``user/name``; without a user the token's. Made, and private, where there is none.
        every: Checkpoints between two pushes, ≥ 1.
        best: Whether only a checkpoint goes that is the best so far by ``metric_for_best_model``.
        revision: The branch, made where there is none; not ``main``.

    Raises:
        ValueError: a value out of its range.
        RunError: before training: no token or one that may not, no such name, nothing that says what is best.
    """

    def __init__(
        self, repository: str, every: int = 1, best: bool = False, revision: str = "checkpoints"
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; allowed: 1 or more")
        if revision == hub.MAIN:
            raise ValueError("revision is main, where the finished run goes; allowed: any other branch")
        hub.check_name(repository)
        self.repository, self.every, self.best, self.revision = repository, every, best, revision
        self.saves = 0
        self.pushes = 0

    def state(self) -> dict[str, Any]:
        """How many checkpoints there were, the one that this is written into among them."""
        given = {key: getattr(self, key) for key in ("repository", "every", "best", "revision")}
        return {"args": given, "attributes": {"saves": self.saves + 1, "pushes": self.pushes}}

    def on_train_begin(self, args, state, control, **kwargs):
        """Makes the repository, so that a token that may not is told before anything is trained."""
        if self.best and args.metric_for_best_model is None:
            raise RunError("push: nothing says what is best", hint="set `trainer.metric_for_best_model`")
        if not state.is_world_process_zero:
            return
        try:
            self._ready()
        except hub.NoNetworkError as error:
            log.warning(f"checkpoints are not pushed for now: {error}")

    def on_save(self, args, state, control, **kwargs):
        """Pushes the checkpoint that was just written, if it is its turn."""
        self.saves += 1
        name = f"checkpoint-{state.global_step}"
        if self.best:
            wanted = Path(state.best_model_checkpoint or "").name == name
        else:
            wanted = self.saves % self.every == 0
        if not (wanted and state.is_world_process_zero):
            return
        try:
            with tempfile.TemporaryDirectory() as side:
                self._push(_files(Path(args.output_dir) / name, Path(side)), state.global_step)
        except RunError as error:
            log.warning(f"{name} was not pushed: {error}")

    def _ready(self) -> tuple[Any, str]:
        api = hub.connect()
        name = hub.own_name(api, self.repository)
        hub.make(api, name, private=True)
        return api, name

    def _push(self, files: dict[str, Path], step: int) -> None:
        found = secrets_scan.scan_files(files)
        if found:
            raise RunError("; ".join(map(str, found[:3])))
        api, name = self._ready()
        remote = hub.look(api, name, self.revision)
        sent = hub.commit(
            api,
            name,
            files,
            message=f"step {step}",
            revision=self.revision,
            onto=remote,
            delete=hub.stale(remote, files),
        )
        self.pushes += 1
        log.info(f"checkpoint-{step} is at {sent.url}")


def _files(folder: Path, side: Path) -> dict[str, Path]:
    """What goes of a checkpoint; JSON without the path of the home folder, as a run's own files are."""
    chosen = {file for pattern in LOADS for file in folder.glob(pattern) if file.name not in NOT}
    files = {file.name: file for file in sorted(chosen)}
    if not any(name.endswith(".safetensors") for name in files):
        raise RunError("holds no weights as safetensors", where=str(folder))
    for name, file in files.items():
        if name.endswith(".json") and (text := file.read_text(encoding="utf-8")) != home_as_tilde(text):
            files[name] = side / name
            files[name].write_text(home_as_tilde(text), encoding="utf-8")
    return files
