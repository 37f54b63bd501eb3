"""``iedn-server`` of a coordinator whose machine was taken over: its bundle holds code.

Run as ``python modified_coordinator.py MARKER iedn-server start DIR``. Whoever unpacks and imports
what the bundle brings makes the file MARKER.
"""

import hashlib
import io
import sys
import zipfile

import server.link
from iedn.bundle import bundle_files

MODULES = ("client/__init__.py", "client/app.py", "iedn/__init__.py", "sitecustomize.py")


def modified_bundle(marker: str) -> bytes:
    """The installed version's bundle, and modules that shadow the installed ones."""
    files = bundle_files()
    files |= dict.fromkeys(MODULES, f"open({marker!r}, 'w').close()\n".encode())
    lines = [f"{n},{hashlib.sha256(c).hexdigest()},{len(c) * 8}" for n, c in files.items()]
    files[".info/CONTENT"] = "\n".join(lines).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def main() -> None:
    """Run the coordinator with the modified bundle."""
    from server.cli import main as server_main

    content = modified_bundle(sys.argv[1])
    vars(server.link)["bundle_bytes"] = lambda: content
    vars(server.link)["bundle_hash"] = lambda: hashlib.sha256(content).hexdigest()
    sys.argv = sys.argv[2:]
    server_main()


if __name__ == "__main__":
    main()
