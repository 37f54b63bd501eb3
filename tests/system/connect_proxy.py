"""A hospital's HTTP proxy: passes connections on by CONNECT, or opens them on the way."""

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass
from pathlib import Path

from server.certificates import (
    issue_server_certificate,
    new_authority,
    new_key,
    write_certificate,
    write_key,
)

from .throttle import Relay, finish


@dataclass(frozen=True)
class Interception:
    """What a proxy needs that opens TLS.

    Attributes:
        towards_site: the proxy's certificate for the coordinator's name, by the hospital's root.
        towards_coordinator: what the proxy itself trusts.
        root: PEM file of the hospital's root certificate.
    """

    towards_site: ssl.SSLContext
    towards_coordinator: ssl.SSLContext
    root: Path

    @classmethod
    def prepare(cls, folder: Path, host: str, ca: Path) -> "Interception":
        """Make a root and a certificate for ``host``; trust ``ca`` on the other side."""
        root, key = new_authority("Hospital proxy root"), new_key()
        write_certificate(folder / "root.crt", root.certificate)
        certificate = issue_server_certificate(root, [host], key.public_key())
        write_certificate(folder / "proxy.crt", certificate)
        write_key(folder / "proxy.key", key)
        towards_site = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        towards_site.load_cert_chain(folder / "proxy.crt", folder / "proxy.key")
        towards_coordinator = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        towards_coordinator.load_verify_locations(ca)
        return cls(towards_site, towards_coordinator, folder / "root.crt")


class ConnectProxy(Relay):
    """Knows one name, which nobody else does, and where it leads.

    Args:
        host: the coordinator's name.
        target: its port, on this machine.
        interception: if given, TLS ends here and begins anew.
    """

    def __init__(self, host: str, target: int, interception: Interception | None = None) -> None:
        super().__init__(target)
        self._host, self._interception = host, interception
        self.requests: set[str] = set()

    async def _reach(
        self, reader: StreamReader, writer: StreamWriter
    ) -> tuple[tuple[StreamReader, StreamWriter], tuple[StreamReader, StreamWriter]]:
        head = await reader.readuntil(b"\r\n\r\n")
        request = head.partition(b" HTTP/")[0].decode("latin-1")
        self.requests.add(request)
        if request != f"CONNECT {self._host}:{self._target}":
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            await writer.drain()
            raise ConnectionError(request)
        inside = self._interception
        if inside is None:
            far = await self.connect()
            await self._say_yes(writer)
            return (reader, writer), far
        far = await self.connect(inside.towards_coordinator, self._host)
        try:
            await self._say_yes(writer)
            return await self._opened(writer, inside.towards_site), far
        except BaseException:
            await finish(far[1])
            raise

    @staticmethod
    async def _say_yes(writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()

    async def _opened(
        self, writer: StreamWriter, context: ssl.SSLContext
    ) -> tuple[StreamReader, StreamWriter]:
        """TLS towards the site, with a reader of its own: the old one is the plain stream's."""
        inner = StreamReader(limit=2**16)
        protocol = asyncio.StreamReaderProtocol(inner)
        transport = await self._loop.start_tls(
            writer.transport, protocol, context, server_side=True
        )
        if transport is None:
            raise ConnectionError("TLS was not opened")
        protocol.connection_made(transport)
        return inner, StreamWriter(transport, protocol, inner, self._loop)
