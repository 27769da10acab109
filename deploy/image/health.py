"""Ask this container's worker whether it should go on: status 0 when it says so, 1 otherwise.

Run by the image's health check. It asks ``/livez`` at the worker's health port, without a proxy and with the standard
library alone. Arguments, both optional: another path, and another port, as for a nats-server.
"""

from __future__ import annotations

import http.client
import os
import sys

_TIMEOUT_S = 5.0


def main() -> int:
    """Ask once, within five seconds."""
    given = dict(enumerate(sys.argv))
    path = given.get(1, "/livez")
    port = int(given.get(2) or os.environ.get("CALLBOARD_WORKER__HEALTH_PORT", "8080"))
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        link.request("GET", path)
        return int(link.getresponse().status != http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        link.close()


if __name__ == "__main__":
    sys.exit(main())
