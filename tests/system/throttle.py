"""What may stand between a site and its coordinator: a slow link, a broken one, a proxy.

Each relay listens on a loopback port, in a thread of its own, and passes bytes on.
"""

import asyncio
import ssl
import threading
import time
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

_CHUNK = 16 * 1024
_SMALL_BUFFER = 64 * 1024
_PATIENCE_S = 30.0

Condition = Literal["open", "silent", "cut"]
"""``silent``: no byte passes; ``cut``: connections end, new ones end at once."""


@dataclass
class Pace:
    """A link's rate in one direction, shared by all its connections; 0 is as fast as can be."""

    bytes_per_s: float
    free_at: float = 0.0
    passed: int = 0

    async def wait(self, size: int) -> None:
        """Wait until ``size`` more bytes may have passed."""
        self.passed += size
        if self.bytes_per_s:
            now = time.monotonic()
            self.free_at = max(self.free_at, now) + size / self.bytes_per_s
            await asyncio.sleep(self.free_at - now)


class Relay:
    """Passes bytes between whoever connects and one place on this machine.

    Args:
        target: port of that place.
        mbit_per_s: in each direction; 0 is as fast as can be.
    """

    def __init__(self, target: int, mbit_per_s: float = 0.0) -> None:
        rate = mbit_per_s * 1e6 / 8
        self.up, self.down = Pace(rate), Pace(rate)
        self.connections = 0
        self.saw_calls = False  # in the clear
        self._target = target
        self._open: set[StreamWriter] = set()
        self._condition: Condition = "open"
        self._flowing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self.port = 0

    def start(self, port: int = 0) -> None:
        """Listen; on the port of a former relay if one is given."""
        self._thread.start()
        self._call(self._listen(port))

    def close(self) -> None:
        """End every connection and stop listening."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def become(self, condition: Condition) -> None:
        """Break the link, or mend it."""
        self._call(self._become(condition))

    def _call(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)  # type: ignore[arg-type]

    async def _listen(self, port: int) -> None:
        self._flowing.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_SMALL_BUFFER)
        self.port = server.sockets[0].getsockname()[1]
        self._server = server

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._become("cut")
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        if others:  # they end by themselves, now that their connections have
            await asyncio.wait(others, timeout=_PATIENCE_S / 2)

    async def _become(self, condition: Condition) -> None:
        self._condition = condition
        if condition == "silent":
            self._flowing.clear()
            return
        self._flowing.set()
        for writer in list(self._open) if condition == "cut" else []:
            writer.transport.abort()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self._condition == "cut":
            writer.close()
            return
        self.connections += 1
        self._open.add(writer)
        try:
            near, far = await self._reach(reader, writer)
            self._open.add(far[1])
            try:
                await self._pass(near, far)
            finally:
                self._open.discard(far[1])
                await asyncio.gather(finish(near[1]), finish(far[1]))
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # either end went away; that is what the tests are about
        finally:
            self._open.discard(writer)
            await finish(writer)

    async def _reach(
        self, reader: StreamReader, writer: StreamWriter
    ) -> tuple[tuple[StreamReader, StreamWriter], tuple[StreamReader, StreamWriter]]:
        """The two ends: towards the site, towards the coordinator."""
        return (reader, writer), await self.connect()

    async def connect(
        self, tls: ssl.SSLContext | None = None, name: str | None = None
    ) -> tuple[StreamReader, StreamWriter]:
        """A connection to the coordinator."""
        return await asyncio.open_connection(
            "127.0.0.1", self._target, ssl=tls, server_hostname=name, limit=_SMALL_BUFFER
        )

    async def _pass(
        self, near: tuple[StreamReader, StreamWriter], far: tuple[StreamReader, StreamWriter]
    ) -> None:
        ways = {
            asyncio.create_task(self._flow(near[0], far[1], self.up)),
            asyncio.create_task(self._flow(far[0], near[1], self.down)),
        }
        _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in rest:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _flow(self, reader: StreamReader, writer: StreamWriter, pace: Pace) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                self.saw_calls = self.saw_calls or b"/v1/fleet/" in chunk
                await self._flowing.wait()
                await pace.wait(len(chunk))
                writer.write(chunk)
                await writer.drain()


async def finish(writer: StreamWriter) -> None:
    """Close a connection for good, also one whose other end does not answer any more."""
    writer.close()
    with suppress(OSError):
        await asyncio.wait_for(writer.wait_closed(), 1.0)
    writer.transport.abort()
