"""Lines of JSON between rank 0 and every other rank, over sockets of their own.

Collectives of the process group need all ranks; a connection tells at once, and which, when a process is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import weakref
from typing import Any

_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_child() -> None:
    # A worker of a data loader that outlives its rank would keep the connection, and the rank would not look gone.
    for sock in list(_open):
        with contextlib.suppress(OSError):
            os.close(sock.detach())


os.register_at_fork(after_in_child=_close_in_child)


class Line:
    """One end of a connection; nothing here waits longer than a second.

    Args:
        sock: The connected socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard = time.monotonic()
        self.closed = False
        self._buffer = b""
        sock.settimeout(1.0)
        # Otherwise a second message waits for word of the first, and is lost if this process ends meanwhile.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _open.add(sock)

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self.sock.fileno()

    def send(self, **message: Any) -> None:
        """Send a message; a connection that is gone is found by reading."""
        with contextlib.suppress(OSError):
            self.sock.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived; afterwards ``closed`` says whether there can be more."""
        try:
            data = self.sock.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            data = b""
        if not data or len(self._buffer) > 1 << 24:
            self.closed = True
            return []
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(message := json.loads(line), dict):
                    messages.append(message)
        return messages

    def close(self) -> None:
        """Close it; what was sent still arrives."""
        self.closed = True
        _open.discard(self.sock)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.sock.close()


def listen(address: str) -> tuple[socket.socket, list[str]]:
    """Open a socket for the other ranks, on the address that they know this machine by if that is one of its own.

    Args:
        address: The main address of the run.

    Returns:
        The socket, and the addresses to try.
    """
    try:
        server = socket.create_server((address, 0), family=_family(address))
        addresses = [address]
    except OSError:  # a name that leads here by way of something else
        server = socket.create_server(("", 0))
        addresses = [address, socket.gethostname()]
    _open.add(server)
    server.settimeout(1.0)
    return server, addresses


def connect(addresses: list[str], port: int, timeout: float) -> Line | None:
    """Connect to rank 0, or return None if no address leads there in ``timeout`` seconds each."""
    for address in addresses:
        with contextlib.suppress(OSError):
            return Line(socket.create_connection((address, port), timeout=timeout))
    return None


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets: one thread wakes another."""
    ends = socket.socketpair()
    _open.update(ends)
    return ends


def _family(address: str) -> socket.AddressFamily:
    return socket.getaddrinfo(address, None)[0][0]
