"""Runs one of the project's commands, and kills it at a named point of its way.

``python doomed.py POINT MARKER -- iedn-server start DIR``

SIGKILL leaves no time for anything, as a power cut does. The product holds no hooks for this: the
launcher wraps the named function of the installed package before it calls the command. A point
strikes once, and writes MARKER just before.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

Call = Callable[..., bool]


@dataclass(frozen=True)
class Point:
    """Where a process is killed.

    Attributes:
        place: ``module:attribute`` or ``module:Class.attribute`` of the function.
        is_it: which of its calls count; takes what the function takes.
        count: the n-th of these calls strikes ...
        when: ... ``before`` or ``after`` it is carried out, or ``torn``: with half of its last
            argument, a line to be appended to a file, written.
        victim: ``self``, or ``child``: the Flower process below it.
    """

    place: str
    is_it: Call = lambda *_, **__: True
    count: int = 1
    when: str = "before"
    victim: str = "self"


def _is_train_reply(_client: Any, message: Any, _context: Any) -> bool:
    return bool(message.metadata.message_type == "train")


def _is_capabilities_reply(_client: Any, message: Any, _context: Any) -> bool:
    return bool(message.metadata.message_type == "query")


def _is_weights(_client: Any, request: Any) -> bool:
    return len(request.object_content) > 4096


def _is_step_two(task: str, done: int, _total: int) -> bool:
    return "training steps" in task and done == 2


def _renames_to(name: str) -> Call:
    return lambda _self, target: Path(target).name == name


def _appends(kind: str, number: int) -> Call:
    return lambda _self, event: event["event"] == kind and event.get("round") == number


def _is_commit_line(path: Path, line: str) -> bool:
    return path.name == "history.jsonl" and '"event": "commit"' in line and '"round": 1' in line


_TAKE, _ADD = "server.intake:Intake.take", "server.aggregation:StreamingSum.add"
_BUILD, _COMMIT = "server.intake:Intake.build", "server.run_folder:RunFolder.commit"
_PUSH, _OBJECT = (
    "client.executor:push_message",
    "flwr.supercore.runtime:RuntimeHttpClient.PushObject",
)
_RENAME, _REPORT = "pathlib:Path.replace", "iedn.progress:report"

# Commits are counted from that of the initial model, so the second is round 1's.
SERVER = {
    "while-sites-join": Point("server.federation:_checked", count=2),
    "before-broadcast": Point("server.run:train_round"),
    "during-broadcast": Point(_BUILD, count=2),
    "during-gather": Point(_TAKE, count=2),
    "between-gate-and-sum": Point(_ADD, count=2),
    "between-sum-and-commit": Point(_COMMIT, count=2),
    "during-model-save": Point(_RENAME, _renames_to("round-0001.safetensors")),
    "between-save-and-history-line": Point(
        "server.run_folder:RunFolder.append", _appends("commit", 1)
    ),
    "half-a-history-line": Point("server.run_folder:append_line", _is_commit_line, when="torn"),
    "after-commit": Point(_COMMIT, count=2, when="after"),
    "between-gate-and-sum-of-first": Point(_ADD),
    "before-best-model-is-kept": Point("server.run_folder:RunFolder.save_best"),
    "before-final-evaluation": Point("server.run:_finish"),
    "before-report": Point("server.report:write_report"),
}
SUPERLINK = {
    "superlink-during-broadcast": Point(_BUILD, count=2, victim="child"),
    "superlink-during-gather": Point(_TAKE, count=2, victim="child"),
    "superlink-after-commit": Point(_COMMIT, count=2, when="after", victim="child"),
}
EXECUTOR = {
    "before-training": Point("client.training:_train"),
    "mid-training": Point(_REPORT, _is_step_two),
    "between-log-and-kept-reply": Point("client.training:keep_reply"),
    "while-reply-is-kept": Point(_RENAME, _renames_to("kept-reply.safetensors")),
    "between-log-and-send": Point(_PUSH, _is_train_reply),
    "mid-upload": Point(_OBJECT, _is_weights, count=2),
    "after-send": Point(_PUSH, _is_train_reply, when="after"),
    "before-evaluation": Point("client.evaluation:evaluate_scans"),
}
SUPERNODE = {
    "node-after-joining": Point(_PUSH, _is_capabilities_reply, when="after", victim="child"),
    "node-mid-training": Point(_REPORT, _is_step_two, victim="child"),
    "node-mid-upload": Point(_OBJECT, _is_weights, count=2, victim="child"),
    "node-after-send": Point(_PUSH, _is_train_reply, when="after", victim="child"),
}
MASKED_SERVER = {
    "masked-keys-agreed": Point("server.mask_keys:remember", when="after"),
    "masked-during-gather": Point(_TAKE, count=2),
}
MASKED_SITE = {
    "masked-between-kept-and-log": Point("sites.egress:Egress.masked_update"),
    "masked-between-log-and-erased": Point("client.mask_key_file:MaskKeyFile.erase_private"),
}
POINTS = MASKED_SERVER | MASKED_SITE | SERVER | SUPERLINK | EXECUTOR | SUPERNODE


def arm(point: Point, marker: Path) -> None:
    """Wrap the point's function."""
    module, _, path = point.place.partition(":")
    owner: Any = import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    left = point.count

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= left > 0 and point.is_it(*args, **kwargs)
        if left != 0 or marker.exists():
            return original(*args, **kwargs)
        if point.when == "after":
            result = original(*args, **kwargs)
            _strike(point, marker)
            return result
        if point.when == "torn":
            with Path(args[0]).open("ab") as stream:
                stream.write(args[1][: len(args[1]) // 2].encode())
        _strike(point, marker)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _strike(point: Point, marker: Path) -> None:
    marker.touch()
    for pid in [os.getpid()] if point.victim == "self" else _children():
        os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent_of(p) == os.getpid()]


def _parent_of(process: Path) -> int | None:
    try:
        stat = (process / "stat").read_text()
    except OSError:  # it has ended meanwhile
        return None
    return int(stat.rpartition(")")[2].split()[1])  # the name before may hold anything


def main() -> None:
    """Arm the point, then be the command."""
    name, marker, _, command, *arguments = sys.argv[1:]
    arm(POINTS[name], Path(marker))
    sys.argv = [command, *arguments]
    package = Path(command).name.replace("iedn-", "")
    import_module(f"{package}.cli").main()


if __name__ == "__main__":
    main()
