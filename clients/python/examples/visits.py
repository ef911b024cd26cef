#!/usr/bin/env python3
"""A small site that records its own visits with millrace, and shows what was counted.

    pip install ./clients/python
    python clients/python/examples/visits.py              # then open the address it prints; Ctrl-C prints the report
    python clients/python/examples/visits.py --visits 20  # visits itself, prints the report, ends

It expects the server of `scripts/up`; `--server` names another, `--token` (or MILLRACE_TOKEN) is for one that wants it.

Every page shown is an interaction `page_interaction.pageview`, a hit "impression" and a captcha that was served; the button
is an interaction `page_interaction.cta_click`, a hit "click" and the captcha solved.
"""

from __future__ import annotations

import argparse
import http.client
import http.cookies
import logging
import os
import re
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from millrace_client import Client, Event, Rejection, Reports, ServerError

# An event is in the report within a second of being taken; the rest is for a busy machine.
STORED_S_MAX = 15.0
BODY_BYTES_MAX = 4096

PAGE = """<!doctype html>
<title>millrace example</title>
<h1>Hello</h1>
<form method="post" action="/subscribe">
  <input type="hidden" name="captcha" value="{captcha}">
  <button id="subscribe">Subscribe</button>
</form>
<p><a href="/report">What was counted</a></p>
"""


class Site(ThreadingHTTPServer):
    """The site, and what it knows of its own visits."""

    daemon_threads = True

    def __init__(self, port: int, client: Client, reports: Reports) -> None:
        super().__init__(("127.0.0.1", port), Page)
        self.client = client
        self.reports = reports
        # A site of its own for each run, so that its report begins at zero.
        self.site_id = uuid.uuid4()
        try:
            self.counted_before = self.counted()
        except ServerError:
            # It may come yet; the report at the end is then what there is.
            self.counted_before = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def record_view(self, host: str, path: str, session: uuid.UUID, captcha: uuid.UUID) -> None:
        data = {"host": host, "path": path}
        self.client.interaction(session_id=session, category="page_interaction", name="pageview", data=data)
        self.client.hit(user=str(session), action="impression")
        self.client.captcha(type="serve", correlation_id=captcha, site_id=self.site_id)

    def record_click(self, host: str, path: str, session: uuid.UUID, captcha: uuid.UUID) -> None:
        data = {"host": host, "path": path, "element": "subscribe"}
        self.client.interaction(session_id=session, category="page_interaction", name="cta_click", data=data)
        self.client.hit(user=str(session), action="click")
        self.client.captcha(type="solve", correlation_id=captcha, site_id=self.site_id)

    def captchas(self) -> tuple[int, int]:
        """Served and solved at this site, as the server has counted them."""
        rows = list(self.reports.captcha(site_id=self.site_id))
        return sum(row["served"] for row in rows), sum(row["solved"] for row in rows)

    def counted(self) -> int:
        """All events of this site's captchas, of this hour's hits and of all interactions, whoever sent them."""
        hits = self.reports.hits()
        interactions = sum(int(row["count"]) for row in self.reports.interaction_counts())
        return sum(self.captchas()) + hits.impressions + hits.clicks + interactions

    def report(self) -> str:
        served, solved = self.captchas()
        hits = self.reports.hits()
        lines = [f"captchas of this site   served {served}, solved {solved}"]
        lines.append(
            f"hits of this hour       {hits.unique_users} users, {hits.impressions} impressions, {hits.clicks} clicks"
        )
        for row in self.reports.interaction_counts():
            lines.append(f"{row['time'][:10]}              {row['category']}.{row['name']} {row['count']}")
        stats = self.client.stats
        lines.append(
            f"this client             {stats.queued} events put, {stats.accepted} taken, {stats.rejected} rejected"
        )
        return "\n".join(lines) + "\n"

    def report_when_stored(self) -> str:
        """The report once everything recorded so far is in it, or what there is after `STORED_S_MAX`."""
        self.client.flush(STORED_S_MAX)
        end = time.monotonic() + STORED_S_MAX
        while self.counted() < self.counted_before + self.client.stats.accepted and time.monotonic() < end:
            time.sleep(0.1)
        return self.report()


class Page(BaseHTTPRequestHandler):
    """One connection of a visitor."""

    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/report":
            try:
                self.answer(200, self.server.report(), "text/plain; charset=utf-8")
            except ServerError as error:
                self.answer(503, f"no report just now: {error}\n", "text/plain; charset=utf-8")
        elif path == "/":
            session, captcha = self.session(), uuid.uuid4()
            self.server.record_view(self.host(), path, session, captcha)
            self.answer(200, PAGE.format(captcha=captcha), "text/html; charset=utf-8", session)
        else:
            self.answer(404, "nothing here\n", "text/plain; charset=utf-8")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            self.close_connection = True
            self.answer(400, "a form of a few bytes is wanted\n", "text/plain; charset=utf-8")
            return
        form = parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"))
        captcha = parsed_uuid(form.get("captcha", [""])[0])
        if urlsplit(self.path).path != "/subscribe" or captcha is None:
            self.answer(404, "nothing here\n", "text/plain; charset=utf-8")
            return
        self.server.record_click(self.host(), "/", self.session(), captcha)
        self.answer(
            200, "<!doctype html><p>Thank you. <a href='/report'>What was counted</a>\n", "text/html; charset=utf-8"
        )

    def host(self) -> str:
        return self.headers.get("Host") or "localhost"

    def session(self) -> uuid.UUID:
        """That of the visitor's cookie, or a new one."""
        try:
            cookie = http.cookies.SimpleCookie(self.headers.get("Cookie", "")).get("session")
        except http.cookies.CookieError:
            cookie = None
        return (cookie and parsed_uuid(cookie.value)) or uuid.uuid4()

    def answer(self, status: int, text: str, media_type: str, session: uuid.UUID | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        if session is not None:
            self.send_header("Set-Cookie", f"session={session}; Path=/; HttpOnly; SameSite=Lax")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass


def parsed_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def visit(site: Site, times: int) -> None:
    """Visits the site as browsers would; every third visitor presses the button."""
    for number in range(times):
        connection = http.client.HTTPConnection("127.0.0.1", site.server_address[1], timeout=10)
        connection.request("GET", "/")
        answer = connection.getresponse()
        cookie = (answer.headers["Set-Cookie"] or "").split(";")[0]
        captcha = re.search(r'name="captcha" value="([^"]+)"', answer.read().decode())
        if number % 3 == 0 and captcha:
            connection.request("POST", "/subscribe", f"captcha={captcha[1]}", {"Cookie": cookie})
            connection.getresponse().read()
        connection.close()


def told_of(event: Event, rejection: Rejection) -> None:
    print(
        f"{event.kind} event not counted: {rejection.code} {rejection.field or ''} {rejection.message}", file=sys.stderr
    )


def main() -> int:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--server", default="http://127.0.0.1:8000", help="where millrace is (%(default)s)")
    words.add_argument("--token", default=os.environ.get("MILLRACE_TOKEN"), help="for a server that wants one")
    words.add_argument(
        "--port", type=int, default=8080, help="where the site is to be, 0 for any free port (%(default)s)"
    )
    words.add_argument("--visits", type=int, help="visit the site so often, print the report, and end")
    chosen = words.parse_args()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")

    # A web server would rather lose an event than keep a visitor waiting.
    with Client(chosen.server, token=chosen.token, on_rejected=told_of, when_full="drop") as client:
        reports = Reports(chosen.server, token=chosen.token)
        site = Site(0 if chosen.visits is not None else chosen.port, client, reports)
        thread = threading.Thread(target=site.serve_forever, daemon=True)
        thread.start()
        try:
            if chosen.visits is None:
                print(f"open {site.address} and come back; Ctrl-C prints the report", flush=True)
                thread.join()
            else:
                visit(site, chosen.visits)
        except KeyboardInterrupt:
            print()
        site.shutdown()
        site.server_close()
        try:
            print(site.report_when_stored(), end="")
        except ServerError as error:
            print(f"no report: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
