"""HTTP to one server, on urllib3: requests in, whole answers out.

Nothing here is repeated, redirected or logged; whoever asks decides what a failure means. Safe to use from several threads.
"""

from __future__ import annotations

import gzip
import platform
from collections.abc import Mapping
from typing import Callable
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from .answers import Answer
from .settings import ANSWER_BYTES_MAX, GZIP_BYTES_MIN, GZIP_LEVEL
from .version import __version__

# One connection for each kind of events and one to spare.
CONNECTIONS_MAX = 4

PoolFactory = Callable[[], urllib3.PoolManager]


class Unreachable(Exception):
    """No whole answer came: the request may have been done or not."""


class Transport:
    """`pool` makes the urllib3 pool to use (proxies, own certificates); it is called again after a fork."""

    def __init__(self, url: str, token: str | None, pool: PoolFactory | None, *, compress: bool) -> None:
        self.base = checked_url(url)
        self._headers = {"User-Agent": f"millrace-client/{__version__} python/{platform.python_version()}"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {checked_token(token)}"
        self._pool_factory = pool
        self._pool = self._make_pool()
        # Until a server says that it does not take gzip; then never again, since asking costs a whole body.
        self.compress = compress

    def renew(self) -> None:
        """Leaves all connections to the process that this one was forked from."""
        self._pool = self._make_pool()

    def _make_pool(self) -> urllib3.PoolManager:
        if self._pool_factory:
            return self._pool_factory()
        return urllib3.PoolManager(maxsize=CONNECTIONS_MAX, cert_reqs="CERT_REQUIRED")

    def encode(self, body: bytes) -> tuple[bytes, bool]:
        """The body as it is to be sent, and whether it is compressed."""
        if not self.compress or len(body) < GZIP_BYTES_MIN:
            return body, False
        return gzip.compress(body, GZIP_LEVEL), True

    def post(self, path: str, body: bytes, *, compressed: bool, timeout_s: float) -> Answer:
        """Sends NDJSON. Raises Unreachable."""
        headers = {"Content-Type": "application/x-ndjson"}
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return self._ask("POST", path, headers, body, timeout_s, ANSWER_BYTES_MAX)

    def get(self, target: str, *, timeout_s: float, answer_bytes_max: int) -> Answer:
        """Raises Unreachable."""
        return self._ask("GET", target, {}, None, timeout_s, answer_bytes_max)

    def _ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        answer_bytes_max: int,
    ) -> Answer:
        sent: dict[str, str] = {**self._headers, **headers}
        try:
            response = self._pool.urlopen(
                method,
                self.base + target,
                headers=sent,
                body=body,
                retries=False,
                redirect=False,
                preload_content=False,
                enforce_content_length=True,
                timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            )
            try:
                said = response.read(answer_bytes_max + 1)
                if len(said) > answer_bytes_max:
                    raise Unreachable(f"an answer of more than {answer_bytes_max} bytes")
            except BaseException:
                # What is left of the answer must not be taken for the next one.
                response.close()
                raise
            response.release_conn()
        except (HTTPError, OSError) as error:
            raise Unreachable(_reason(error)) from error
        return Answer(response.status, said, response.headers.get("Retry-After"), response.headers.get("X-Request-Id"))

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._pool.clear()


def checked_url(url: str) -> str:
    """Without a slash at its end. Raises TypeError or ValueError; no message repeats what may be a password."""
    if not isinstance(url, str):
        raise TypeError(f"url is {type(url).__name__}, not str")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url does not begin with http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url holds a user name or password: give a token instead")
    if parts.query or parts.fragment:
        raise ValueError("url holds a query or fragment; it is the address below which the server's paths lie")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("url has a malformed port") from None
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def checked_token(token: str) -> str:
    """Visible ASCII. Raises TypeError or ValueError, which do not repeat the token."""
    if not isinstance(token, str):
        raise TypeError(f"token is {type(token).__name__}, not str")
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError("token is empty or holds other characters than visible ASCII")
    return token


def _reason(error: Exception) -> str:
    """What failed, in one short line: urllib3's texts name host and port, and no header."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
