"""``safegene site serve``: the pages of a report over HTTP, on this machine only.

Only the pages that `safegene.report.site.write_site` wrote are served, never another file of the folder. The report
quotes replies that may be harmful, so a request must name this server in its ``Host``: a page of another site, whose
name was made to point here, gets nothing.
"""

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from safegene.errors import ParamsError
from safegene.report.site import INDEX, Site

HOST = "127.0.0.1"
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class PageHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the pages of one `Site`."""

    site: Site
    server_version, sys_version = "safegene", ""

    def do_GET(self) -> None:  # noqa: N802 (the library's name)
        """Send a page."""
        self._answer(body=True)

    def do_HEAD(self) -> None:  # noqa: N802 (the library's name)
        """Send the headers of a page."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        _, port, *_ = self.connection.getsockname()
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        name = self.path.partition("?")[0].removeprefix("/") or INDEX
        try:
            page = (self.site.folder / name).read_bytes() if name in self.site.pages else None
        except OSError:
            page = None
        if page is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        for header, value in {**HEADERS, "Content-Length": str(len(page))}.items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def site_server(site: Site, port: int) -> ThreadingHTTPServer:
    """A server of the pages on `HOST`; call ``serve_forever``.

    Args:
        site: the pages.
        port: 0 for any that is free.

    Raises:
        ParamsError: the port is taken, or may not be used.
    """
    handler = type("SiteHandler", (PageHandler,), {"site": site})
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise ParamsError(
            f"expected a free port on {HOST}, got {port}: {error.strerror}",
            remedy="`safegene site serve --port 0` takes one that is free",
        ) from None
