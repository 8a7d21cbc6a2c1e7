"""A socket that listens, or one clear error; for whatever of ours answers over HTTP."""

from __future__ import annotations

import os
import socket

from hf_llm_recipes.errors import RunError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listening(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        RunError: an unknown host, or a port that is taken or not allowed.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror
        raise RunError(
            f"cannot listen there: {why}",
            where=f"{host}:{port}",
            hint=f"choose another, e.g. --port {port % 60_000 + 1}, or --port 0 for a free one",
        ) from error


def url_of(host: str, port: int) -> str:
    """Returns the address that a browser or a client is given."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
