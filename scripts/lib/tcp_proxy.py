"""TCP between two ends, which tests and scripts/chaos can disturb.

- `swallow(needle, times)`: the next `times` requests in which `needle` occurs reach the server, and the answer is
  lost: the connection is closed when it begins to arrive.
- `cut()`: all connections are closed and new ones refused; `mend()` ends that.
- `freeze()`: connections stay, and nothing passes; `thaw()` ends that, and what was held up arrives.
- `blackhole()`: what is sent on the connections of now never arrives, and no end is told, as with a host that lost its power;
  new connections work.
- `delay_s`: each piece waits so long in each direction.
- `lose`: the chance that an answer is lost when it begins to arrive, its connection with it.
- `tear`: the chance that a piece of a request arrives only in part, and its connection is closed.
"""

import random
import socket
import threading
import time
from contextlib import closing, suppress

PIECE_BYTES_MAX = 1 << 16


class Proxy:
    """Listens on loopback, on `port` or a free one; `target` is HOST:PORT. `dice` decides what is lost or torn."""

    def __init__(self, target, port=0, dice=None):
        host, _, far_port = target.rpartition(":")
        self.target = (host, int(far_port))
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.dice = dice or random.Random()
        self.lock = threading.Lock()
        self.needle, self.left, self.swallowed, self.torn = b"", 0, 0, 0
        self.delay_s, self.lose, self.tear = 0, 0, 0
        self.flows = threading.Event()
        self.flows.set()
        self.open, self.silenced = set(), set()
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def swallow(self, needle, times):
        with self.lock:
            self.needle, self.left = needle, times

    def cut(self):
        # A listener that is only closed goes on accepting in a thread that waits in accept.
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.disconnect()

    def disconnect(self):
        """Closes all connections; new ones are taken."""
        with self.lock:
            found, self.open = self.open, set()
        for connection in found:
            _end(connection)

    def freeze(self):
        self.flows.clear()

    def thaw(self):
        self.flows.set()

    def blackhole(self):
        with self.lock:
            self.silenced |= self.open

    def mend(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, timeout=10)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            marked = threading.Event()
            with self.lock:
                self.open |= {near, far}
            threading.Thread(target=self._forward, args=(near, far, marked), daemon=True).start()
            threading.Thread(target=self._back, args=(near, far, marked), daemon=True).start()

    def _forward(self, near, far, marked):
        with suppress(OSError):
            while piece := near.recv(PIECE_BYTES_MAX):
                self._wait()
                if near in self.silenced:
                    continue
                with self.lock:
                    if self.left > 0 and not marked.is_set() and self.needle in piece:
                        self.left -= 1
                        marked.set()
                    torn = self.tear and self.dice.random() < self.tear
                    self.torn += bool(torn)
                if torn:
                    far.sendall(piece[: len(piece) // 2])
                    break
                far.sendall(piece)
        self._close(near, far)

    def _back(self, near, far, marked):
        with suppress(OSError):
            while piece := far.recv(PIECE_BYTES_MAX):
                self._wait()
                if near in self.silenced:
                    continue
                with self.lock:
                    lost = marked.is_set() or (self.lose and self.dice.random() < self.lose)
                    self.swallowed += bool(lost)
                if lost:
                    break
                near.sendall(piece)
        # Of a silenced one's end nobody hears either: it is closed when the near end gives it up.
        if near not in self.silenced:
            self._close(near, far)

    def _wait(self):
        if self.delay_s:
            time.sleep(self.delay_s)
        self.flows.wait()

    def _close(self, near, far):
        with self.lock:
            self.open -= {near, far}
            self.silenced -= {near, far}
        for connection in (near, far):
            _end(connection)

    def close(self):
        self.thaw()
        self.cut()


def _end(connection):
    with closing(connection), suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
