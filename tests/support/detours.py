"""Data links that can be cut: every connection of a run's data network goes through a proxy of this process.

The controller tells each node where its peers are: here it tells it of a proxy instead, one for each pair, so that the
links of one node can be cut without touching another's. TLS is from end to end; the proxies see bytes.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from typing import Any

import pytest

from harness.controller import conductor
from harness.controller.members import Member

_RESET = struct.pack("ii", 1, 0)


class Detours:
    """All proxies of a run, served by one thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._proxies: dict[tuple[str, str], socket.socket] = {}
        self._targets: dict[tuple[str, str], tuple[str, int]] = {}
        self._open: dict[socket.socket, tuple[socket.socket, tuple[str, str]]] = {}  # other end, pair
        self._cut: set[str] = set()
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """From here on controllers send their nodes through this."""
        detours = self

        class Detoured(Member):
            def send(self, kind: str, **fields: Any) -> None:
                if kind == "peers":
                    peers = fields["peers"].items()
                    fields["peers"] = {
                        name: [*detours.around(self.name, name, host, port), incarnation]
                        for name, (host, port, incarnation) in peers
                    }
                elif kind == "returned":
                    found = detours.around(self.name, fields["name"], fields["host"], fields["port"])
                    fields["host"], fields["port"] = found
                super().send(kind, **fields)

        patch.setattr(conductor, "Member", Detoured)

    def around(self, src: str, dst: str, host: str, port: int) -> tuple[str, int]:
        """Return the address at which `src` finds the proxy to `dst`; a link that was cut is whole again."""
        with self._lock:
            pair = (src, dst)
            self._targets[pair] = (host, port)
            if pair not in self._proxies:
                proxy = self._proxies[pair] = socket.create_server(("127.0.0.1", 0))
                self._selector.register(proxy, selectors.EVENT_READ, pair)
            address: tuple[str, int] = self._proxies[pair].getsockname()
            return address

    def cut(self, name: str, silently: bool) -> None:
        """Cut all links of a node, for good."""
        with self._lock:
            self._cut.add(name)
            for end, (_, pair) in list(self._open.items()):
                if name in pair:
                    self._selector.unregister(end)
                    if not silently:
                        del self._open[end]
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        end.close()

    def _serve(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.05):
                with self._lock, contextlib.suppress(KeyError, OSError, ValueError):
                    if key.fileobj in self._open:
                        self._forward(key.fileobj)  # type: ignore[arg-type]
                    elif key.fileobj is self._proxies.get(key.data):
                        self._accept(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self, proxy: socket.socket, pair: tuple[str, str]) -> None:
        near, _ = proxy.accept()
        if self._cut & set(pair):
            near.close()
            return
        try:
            far = socket.create_connection(self._targets[pair])
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open[one] = (other, pair)
            self._selector.register(one, selectors.EVENT_READ, pair)

    def _forward(self, end: socket.socket) -> None:
        other, _ = self._open[end]
        try:
            data = end.recv(2**18)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for one in (end, other):
                if self._open.pop(one, None) is not None:
                    self._selector.unregister(one)
                    one.close()

    def close(self) -> None:
        """Close everything."""
        self._over = True
        self._thread.join()
        for one in [*self._open, *self._proxies.values()]:
            one.close()
        self._selector.close()
