"""All pages of the reference that are made from the code, by file name."""

from sites.codes import reference_page

from . import commands, configuration, messages, refusals


def pages() -> dict[str, str]:
    """File name -> text."""
    return {
        "codes.md": reference_page(),
        "commands.md": commands.page(),
        "configuration.md": configuration.page(),
        "exit-codes.md": refusals.page(),
        "messages.md": messages.page(),
    }
