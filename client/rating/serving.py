"""Serving the page: one process a study, on the loopback interface only."""

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from iedn.errors import ConfigError
from iedn.files import only_process

LOOPBACK = "127.0.0.1"
LOCK = "page.lock"


def serve(
    folder: Path, port: int, *, idle: timedelta, announce: Callable[[], None] = lambda: None
) -> None:
    """Serve a study's page until interrupted.

    Args:
        folder: the study's.
        port: on 127.0.0.1.
        idle: how long a reader's session lasts without a request.
        announce: called once the port is this page's.

    Raises:
        ConfigError: FastAPI is not installed, the port is taken, or the study is being served.
    """
    try:
        import uvicorn

        from .app import create_app
    except ImportError as error:
        problem = f"{error.name} is not installed"
        allowed = 'pip install --constraint constraints.txt "iedn[reader]"'
        raise ConfigError(problem, where="rate", allowed=allowed) from error

    with only_process(folder / LOCK) as is_only, socket.socket() as listener:
        if not is_only:
            raise ConfigError("this study's page is being served already", where=str(folder))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            problem = f"the port cannot be used: {error.strerror}"
            raise ConfigError(problem, where=f"--port {port}", allowed="a free port") from error
        config = uvicorn.Config(
            create_app(folder, port, idle=idle),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        announce()
        uvicorn.Server(config).run(sockets=[listener])
