"""Writes the pages of ``docs/reference`` from the code: ``python -m tools.reference``."""

from pathlib import Path

from iedn.files import atomic_write_bytes

from .pages import pages


def main() -> None:
    """Write every page."""
    folder = Path(__file__).parents[2] / "docs" / "reference"
    for name, text in pages().items():
        atomic_write_bytes(folder / name, text.encode())


main()
