"""``demo RUN``: the page behind an address of this machine, until Ctrl-C."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_llm_recipes.demo.base import Panel
from hf_llm_recipes.demo.classifying import ImagePanel, TextPanel
from hf_llm_recipes.demo.flagged import Columns, Flagged
from hf_llm_recipes.demo.tagging import TokenPanel
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.listening import LOOPBACK, listening, url_of
from hf_llm_recipes.predictor import Predictor, saved_task
from hf_llm_recipes.registry import registered_name
from hf_llm_recipes.rundir import MODEL, model_folder

SHOWN = ("text_classification", "token_classification", "image_classification")
SECONDS_TO_FINISH = 3  # of answers that are being made when the page ends


def demo(
    path: str | Path,
    flagged: Path,
    host: str,
    port: int,
    say: Callable[[str], None],
    *,
    trust_code: bool = False,
) -> None:
    """Serves the page of a run until Ctrl-C.

    Args:
        path: A run directory, or the ``model/`` folder of one.
        flagged: Where flagged rows go.
        host: Address to listen at.
        port: In [0, 65535]; 0 takes a free one.
        say: Takes what a user should know.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        MissingExtraError: the extra ``demo`` is not installed.
        RunError: no finished run, a task that has no page, a port that is taken, a file that cannot be
            written.
    """
    check_shown(saved_task(path, trust_code=trust_code))
    folder = model_folder(path)
    file = Flagged(flagged, Columns.of_run(folder))
    with tempfile.TemporaryDirectory(prefix="hlr-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        from hf_llm_recipes.demo.page import blocks

        with listening(host, port) as sock:
            predictor = Predictor.load(path, trust_code=trust_code)
            name = run_name(folder)
            page = blocks(panel_of(predictor, file), file, name, lead_of(predictor))
            for sentence in greeting(file, host, sock.getsockname()[1]):
                say(sentence)
            _serve(page, sock, host)
    say("stopped")


def check_shown(task: Any) -> None:
    """Refuses tasks that have no page.

    Raises:
        RunError: names those that have one.
    """
    if not task.writes and registered_name(type(task)) not in SHOWN:
        raise RunError(
            f"the run's task is {registered_name(type(task))}, for which there is no page",
            allowed=f"runs of the tasks {', '.join(SHOWN)}, chat, generation, preference and clm",
        )


def panel_of(predictor: Predictor, flagged: Flagged) -> Panel:
    """Returns the panel of a run's task."""
    kind = registered_name(type(predictor.task))
    if kind == "text_classification":
        return TextPanel(predictor)
    if kind == "token_classification":
        return TokenPanel(predictor)
    if kind == "image_classification":
        return ImagePanel(predictor, flagged.labeled.with_name(f"{flagged.labeled.stem}-images"))
    from hf_llm_recipes.demo.writing import WritingPanel

    back = {old: name for name, old in flagged.columns.names.items()}
    return WritingPanel(predictor, [back.get(column, column) for column in flagged.columns.others])


def run_name(folder: Path) -> str:
    """Returns the name of the run's directory."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == MODEL else folder.name


def lead_of(predictor: Predictor) -> str:
    """Returns the sentence under the title."""
    kind = registered_name(type(predictor.task)).replace("_", " ")
    count = sum(weight.numel() for weight in predictor.model.parameters())
    return f"{kind}; a model of {count:,} weights on {predictor.model.device.type}"


def greeting(flagged: Flagged, host: str, port: int) -> list[str]:
    """Returns the lines that say where the page is and where flagged rows go."""
    lines = [
        f"page:    {url_of(host, port)}",
        f"flagged: {flagged.labeled}, without an answer: {flagged.unlabeled}",
        "Ctrl-C ends it",
    ]
    if host not in LOOPBACK:
        lines.append(
            "careful: whoever reaches this machine can use the page and flag rows; there is no password"
        )
    return lines


def _serve(page: Any, sock: Any, host: str) -> None:
    import fastapi
    import gradio as gr
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from hf_llm_recipes.demo.page import LARGEST_FILE, STYLE, theme

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if host in LOOPBACK:  # a page elsewhere whose name is pointed at this machine gets no answer
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "["])
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=LARGEST_FILE,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(),
        css=STYLE,
    )
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_FINISH)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[sock])
