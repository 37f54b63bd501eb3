"""``docs/reference/messages.md``: every message, and every field of it."""

from collections.abc import Iterator

from pydantic import BaseModel

from iedn.protocol import messages
from iedn.protocol.messages import MESSAGES, OUTGOING, PROTOCOL_VERSION, ProtocolMessage

from .docstrings import attributes_of, summary_of
from .values import allowed

PARTS = (messages.MaskKey, messages.PairedAreas, messages.ModelCard)
# What is the same in every message, and said once here.
COMMON = {
    "protocol_version": f"Version of the messages; this package speaks {PROTOCOL_VERSION}.",
    "round": "Number of the round.",
    "base_hash": "Hash of the global model concerned.",
    "run": "Name of the run.",
}
HEAD = """# Messages

Made from the code (`iedn/protocol/messages.py`) by `python -m tools.reference`; a test keeps
the two the same. This is the whole list of what crosses the hospital's wall besides tensors,
which travel one record a group. Unknown fields are refused. In plain words the fields are in
[architecture](../architecture.md#what-crosses-the-hospital-wall).
"""


def page() -> str:
    """The page."""
    parts = [HEAD]
    for message in MESSAGES:
        way = "out: site to coordinator" if message in OUTGOING else "in: coordinator to site"
        parts += [f"## {message.kind}\n", f"*{way}.* {_summary(message)}\n", *_fields(message)]
    parts.append("## Parts\n")
    for part in PARTS:
        parts += [f"### {part.__name__}\n", f"{summary_of(part)}\n", *_fields(part)]
    return "\n".join(parts)


def _summary(message: type[ProtocolMessage]) -> str:
    text = summary_of(message).partition(": ")[2]
    return text[:1].upper() + text[1:]


def _fields(model: type[BaseModel]) -> Iterator[str]:
    said = {**COMMON, **_borrowed(), **attributes_of(model)}
    yield "| field | value | what |\n|---|---|---|"
    for name, field in model.model_fields.items():
        if name not in said:
            msg = f"{model.__name__}.{name} is described nowhere"
            raise ValueError(msg)
        value = allowed(field.annotation, tuple(field.metadata))
        yield f"| `{name}` | {value} | {said[name]} |"
    yield ""


def _borrowed() -> dict[str, str]:
    """What one message says of a field that another one has too."""
    return {k: v for message in MESSAGES for k, v in attributes_of(message).items()}
