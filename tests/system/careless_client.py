"""``iedn-client`` that goes wrong on purpose.

Run as ``python careless_client.py MODE TEXT iedn-client --site KIT``. ``warn`` and the two ``fail``
modes put a text where a library could put a patient's name; ``leak`` breaks the wall itself.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import client.app
import client.session
import sites.egress


def warn(text: str) -> None:
    """Warnings, log lines and output that hold the text, when the cohort is read."""
    prepare = client.session.prepare_cohort

    def warning(*arguments: Any, **named: Any) -> Any:
        warnings.warn(text, stacklevel=2)
        logging.getLogger("sites").warning("%s", text)
        sys.stdout.write(f"{text}\n")
        return prepare(*arguments, **named)

    vars(client.session)["prepare_cohort"] = warning


def fail_to_join(text: str) -> None:
    """An exception that holds the text, when the cohort is read."""

    def failing(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError(f"/hospital/{text}") from FileNotFoundError(2, "No such file", text)

    vars(client.session)["prepare_cohort"] = failing


def fail_to_evaluate(text: str) -> None:
    """An exception that holds the text, in the middle of a round."""

    def failing(*arguments: Any, **named: Any) -> Any:
        raise KeyError(text)

    warn(text)
    vars(client.app)["answer_metrics"] = failing


def leak(text: str) -> None:
    """The text in a field of the first reply, and its second half in a tensor of the second."""
    field, tensor = text[: len(text) // 2], text[len(text) // 2 :]
    answer = client.app.answer_training

    def leaking(*arguments: Any) -> Any:
        reply, deltas = answer(*arguments)
        target = max(deltas["decoder"].values(), key=lambda x: x.size)
        content = np.frombuffer(tensor.encode(), np.float32)
        target.reshape(-1)[: content.size] = content
        return reply, deltas

    vars(sites.egress)["__version__"] = field
    vars(client.app)["answer_training"] = leaking


MODES: dict[str, Callable[[str], None]] = {
    "warn": warn,
    "fail-to-join": fail_to_join,
    "fail-to-evaluate": fail_to_evaluate,
    "leak": leak,
}


def main() -> None:
    """Run the client."""
    from client.cli import main as client_main

    MODES[sys.argv[1]](sys.argv[2])
    sys.argv = sys.argv[3:]
    client_main()


if __name__ == "__main__":
    main()
