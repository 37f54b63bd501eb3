"""The page's process beside a run: what goes wrong in it, goes wrong in it alone."""

import socket
import sys

from iedn.loopback import serve_on
from iedn.process import end_with_parent
from server.status import RunWatch

from .app import create_app
from .serving import ENDING_S, PageSettings


def main() -> None:
    """Serve until told to end, or until the parent is gone."""
    end_with_parent()
    settings = PageSettings.model_validate_json(sys.stdin.buffer.read())
    with socket.socket(fileno=settings.descriptor) as listener:
        port = listener.getsockname()[1]
        serve_on(listener, create_app(RunWatch(settings.folder).document, port), ending_s=ENDING_S)


if __name__ == "__main__":
    main()
