"""A finished run behind the OpenAI-compatible server of ``transformers serve``.

Notable:
- The run's own loader loads the model, so that adapters and quantised bases are served as they were judged;
  upstream's server would look for whole weights under a name on the Hub.
- What upstream does otherwise than ``predict`` is brought in line: the run's system message, its settings
  (upstream asks for 1,024 tokens or more), the end that a tokenizer puts behind a text, and the model's
  positions.
- A temperature above 0 or a top_p below 1 samples; fields that upstream would ignore are refused.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_llm_recipes.errors import DataError, MissingExtraError

try:
    import fastapi
    import openai  # noqa: F401  upstream's handlers are made of its types
    import uvicorn
    from fastapi.exceptions import HTTPException
    from fastapi.responses import JSONResponse
except ImportError as error:
    raise MissingExtraError(error.name or "fastapi", "serve") from error

from jinja2.exceptions import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState

from hf_llm_recipes.listening import LOOPBACK, listening, url_of
from hf_llm_recipes.predictor import Predictor, check_writes, saved_task
from hf_llm_recipes.rundir import MODEL, model_folder
from hf_llm_recipes.tasks import _language
from hf_llm_recipes.tasks._chat_forms import OPENING
from hf_llm_recipes.tasks._language_task import Writing

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
WITHOUT_EFFECT = {  # upstream ignores them: what may be sent all the same
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
}
SECONDS_TO_FINISH = 3  # of answers that are being written when the server ends


def serve(
    path: str | Path, host: str, port: int, say: Callable[[str], None], *, trust_code: bool = False
) -> None:
    """Serves a run's language model until Ctrl-C.

    Args:
        path: A run directory, or the ``model/`` folder of one.
        host: Address to listen at.
        port: In [0, 65535]; 0 takes a free one.
        say: Takes what a user should know: the address, the model's name, a request to try.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, a task that writes no text, or a port that is taken.
    """
    check_writes(saved_task(path, trust_code=trust_code), "be served")
    with listening(host, port) as sock:
        predictor = Predictor.load(path, trust_code=trust_code)
        name = served_name(model_folder(path))
        config = uvicorn.Config(
            application(predictor, name), log_level="warning", timeout_graceful_shutdown=SECONDS_TO_FINISH
        )
        for sentence in greeting(predictor, name, host, sock.getsockname()[1]):
            say(sentence)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[sock])
    say("stopped")


def served_name(folder: Path) -> str:
    """Returns what requests call the model: the name of the run's directory."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == MODEL else folder.name


def greeting(predictor: Predictor, name: str, host: str, port: int) -> list[str]:
    """Returns the lines that say where the server is and how it is asked."""
    writing = predictor.task.writing(predictor.tokenizer)
    url = f"{url_of(host, port)}/v1"
    body, endpoint = f'{{"model": "{name}", "prompt": "The"}}', "completions"
    if writing.chats:
        body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
        endpoint = "chat/completions"
    most = writing.settings.get("max_new_tokens")
    lines = [
        f"url:    {url}",
        f"model:  {name}",
        f"curl {url}/{endpoint} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        *([f"answers have at most {most} tokens, unless max_tokens says otherwise"] if most else []),
        "Ctrl-C ends it",
    ]
    if host not in LOOPBACK:
        lines.append("careful: whoever reaches this machine can ask the model; there is no password")
    return lines


def application(predictor: Predictor, name: str) -> fastapi.FastAPI:
    """Returns upstream's server around one run's model.

    Args:
        predictor: Of a run whose task writes; its model gets the run's settings of generation.
        name: What requests call it.
    """
    model, tokenizer = predictor.model, predictor.tokenizer
    writing = predictor.task.writing(tokenizer)
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    inner.generation_config.update(**writing.settings, pad_token_id=tokenizer.pad_token_id)
    manager, state = OneModel(name, model, tokenizer), OneThread(Fitting(model, tokenizer))
    beginnings = OneThread(FittingBeginnings(model, tokenizer, state.manager))
    app = build_server(
        manager,
        ChatHandler(writing, manager, state),
        completion_handler=TextHandler(writing, manager, beginnings),
        response_handler=ResponsesHandler(writing, manager, state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
    )
    for cls in (HTTPException, ValueError, TypeError, KeyError, TemplateError):
        app.add_exception_handler(cls, _bad_request)
    return app


class OneModel(ModelManager):
    """A model that is there, under one name.

    Args:
        name: Of the model.
        model: In ``eval()``.
        tokenizer: Its own.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.force_model = name  # handlers refuse requests for another
        self._model, self._tokenizer, self._since = model, tokenizer, int(time.time())

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it is: it has no revisions."""
        return model_id

    def load_model_and_processor(self, model_id_and_revision: str, *given: Any, **named: Any) -> Any:
        """Returns the model and its tokenizer.

        Raises:
            ValueError: another model is asked for.
        """
        if model_id_and_revision != self.force_model:
            raise ValueError(f"this server has the model {self.force_model!r} only")
        return self._model, self._tokenizer

    async def load_model_streaming(self, model_id_and_revision: str, gguf_file: str | None = None) -> Any:
        """Says that the model is loaded, or is not here, as upstream says it."""
        said: dict[str, Any] = {"status": "ready", "model": model_id_and_revision, "cached": True}
        if model_id_and_revision != self.force_model:
            said = {**said, "status": "error", "message": f"this server has {self.force_model!r} only"}
        yield f"data: {json.dumps(said)}\n\n"

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict]:
        """Lists the one model."""
        about = {"object": "model", "created": self._since, "owned_by": "hf_llm_recipes"}
        return [{"id": self.force_model, **about}]

    def shutdown(self) -> None:
        """Nothing: the model stays as long as the server does."""


class Fitting(GenerateManager):
    """Generation that stays within the model's positions.

    Args:
        model: Which is asked.
        tokenizer: Its own.
        other: Whose thread is used; a model answers one request at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, other: Fitting | None = None) -> None:
        if other is None:
            super().__init__()
        else:
            self._thread = other._thread
        self.model, self.tokenizer = model, tokenizer

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, **named: Any
    ) -> Any:
        """As upstream; see ``fit``."""
        self.fit(inputs, gen_config)
        return super().generate_streaming(model, processor, inputs, gen_config, **named)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, **named: Any
    ) -> Any:
        """As upstream; see ``fit``."""
        self.fit(inputs, gen_config)
        return await super().generate_non_streaming(model, processor, inputs, gen_config, **named)

    def fit(self, inputs: Any, gen_config: Any) -> None:
        """Asks for no more tokens than the model has positions for.

        Raises:
            DataError: the prompt fills them all, or fewer than one token is asked for.
        """
        most = gen_config.max_new_tokens
        if most is not None and most < 1:
            raise DataError(f"{most} tokens are asked for", allowed="1 or more")
        room = _language.room(inputs["input_ids"].shape[-1], None, self.model.config)
        gen_config.max_new_tokens = min(most or room, room)


class FittingBeginnings(Fitting):
    """The same for texts that are gone on with: a tokenizer's end is taken off before."""

    def fit(self, inputs: Any, gen_config: Any) -> None:
        """Changes the inputs, too."""
        ids = _language.going_on(inputs["input_ids"][0].tolist(), None, self.tokenizer)
        ids_1T = inputs["input_ids"].new_tensor([ids], dtype=int)
        for key in list(inputs):
            del inputs[key]
        inputs["input_ids"], inputs["attention_mask"] = ids_1T, ids_1T.new_ones(ids_1T.shape)
        super().fit(inputs, gen_config)


class OneThread(GenerationState):
    """The one generation manager, for whatever model is asked.

    Args:
        manager: It.
    """

    def __init__(self, manager: Fitting) -> None:
        super().__init__()
        self.manager = manager

    def get_manager(self, model_id: str, use_cb: bool = False) -> Fitting:
        """Returns it."""
        return self.manager


class AsThePredictor(BaseHandler):
    """What every handler does here as ``predict`` does; stands before upstream's.

    Args:
        writing: How the run's task writes.
    """

    def __init__(self, writing: Writing, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.writing = writing

    def get_processor_inputs_from_messages(self, messages: Any, modality: Any) -> list[dict]:
        """As upstream, and before messages that open without it what the run's system says.

        Raises:
            DataError: no messages, or a model without a chat template.
        """
        template = self.model_manager._tokenizer.chat_template
        if not template:
            raise DataError("this model has no chat template", hint="ask /v1/completions, with `prompt`")
        if not isinstance(messages, list) or not messages:
            raise DataError(f"messages is {messages!r}", allowed="a list of messages with role and content")
        made = super().get_processor_inputs_from_messages(messages, modality)
        if self.writing.system is not None and made[0]["role"] not in OPENING:
            made.insert(0, {"role": "system", "content": self.writing.system})
        return made

    def _validate_request(self, body: dict) -> None:
        super()._validate_request(body)
        for key, allowed in WITHOUT_EFFECT.items():
            given = body.get(key)
            if given is not None and given not in allowed:
                raise DataError(
                    f"{key} is {given!r}, which this server cannot do",
                    allowed=f"{allowed[0]!r}, or leave it out",
                )

    def _build_generation_config(self, body: dict, model_generation_config: Any, use_cb: bool = False) -> Any:
        made = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        if body.get("generation_config") is None and all(body.get(key) is None for key in LIMITS):
            made.max_new_tokens = model_generation_config.max_new_tokens
        temperature, top_p = body.get("temperature"), body.get("top_p")
        if temperature is not None:
            made.do_sample = temperature > 0
        elif top_p is not None and top_p < 1:
            made.do_sample = True
        return made


class ChatHandler(AsThePredictor, ChatCompletionHandler):
    """``/v1/chat/completions``."""

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """As upstream; messages may not be left out."""
        return await super().handle_request({"messages": None, **body}, request_id)


class TextHandler(AsThePredictor, CompletionHandler):
    """``/v1/completions``."""


class ResponsesHandler(AsThePredictor, ResponseHandler):
    """``/v1/responses``."""

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """As upstream, but a stream comes only where it is asked for, as OpenAI has it."""
        return await super().handle_request({"stream": False, **body}, request_id)


async def _bad_request(request: fastapi.Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, in the form of OpenAI's errors."""
    status, said = 400, str(error)
    if isinstance(error, HTTPException):
        status, said = error.status_code, str(error.detail)
    elif isinstance(error, KeyError):
        said = f"{error} is missing"
    about = {"message": said, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": about}, status_code=status)
