"""Something that is done again and again while something else goes on."""

import threading
from collections.abc import Callable


def repeat_in_background(action: Callable[[], None], interval_s: float) -> Callable[[], None]:
    """Do something every so often in a thread; returns a function that ends this."""
    ending = threading.Event()

    def loop() -> None:
        while not ending.wait(interval_s):
            action()

    thread = threading.Thread(target=loop, name="background", daemon=True)
    thread.start()

    def end() -> None:
        ending.set()
        thread.join()

    return end
