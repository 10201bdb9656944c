"""A TCP proxy on loopback that breaks connections: after so many bytes, or around a message that it recognizes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """Passes bytes on to a server until its cut is reached."""

    target: int
    """The port of the server."""
    port: int = 0
    after_bytes: int | None = None
    """Cut all connections when clients have sent this many bytes in total."""
    at: bytes = b""
    """Cut the first connection whose client sends this."""
    later: int = 0
    """How many messages after `at` are passed on and answered before."""
    passing: bool = False
    """Whether the last message still reaches the server; then only its answer is lost."""
    refusing: bool = False
    """Whether new connections are refused once one was cut."""
    silent: bool = False
    """Whether nothing is passed on, while the connections stay open: a network that lost its way."""
    sent: int = 0
    """Bytes that clients have sent."""
    cut: int = 0
    """Connections that were cut."""
    _waiting: socket.socket | None = None
    """The client that has sent `at`."""
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        """Accept connections until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self.refusing and self.cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self._pairs.append((client, server))
                for source, sink, upstream in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pump, args=(source, sink, upstream), daemon=True).start()

    def close(self) -> None:
        """Break all connections."""
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _pump(self, source: socket.socket, sink: socket.socket, upstream: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if upstream and self._reached(source, sink, data):
                    return
                while self.silent:
                    time.sleep(0.05)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _reached(self, client: socket.socket, server: socket.socket, data: bytes) -> bool:
        """Cut the connection if its time has come."""
        before, self.sent = self.sent, self.sent + len(data)
        passing = self.passing
        if self.after_bytes is not None and before <= self.after_bytes < self.sent:
            data, passing = data[: self.after_bytes - before], True
        elif self._waiting is client or (self._waiting is None and self.at and self.at in data):
            self._waiting = client
            self.later -= 1
            if self.later >= 0:
                return False
            self.at = b""
        else:
            return False
        self.cut += 1
        client.shutdown(socket.SHUT_RDWR)  # Before the server has the message: its answer finds nobody.
        if passing:
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)
        return True


@contextmanager
def proxied(target: int, **cut: object) -> Iterator[Proxy]:
    """A proxy to a port while the block lasts."""
    proxy = Proxy(target, **cut)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.port = listener.getsockname()[1]
        thread = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            proxy.close()
            thread.join(10)
