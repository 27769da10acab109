"""An embedded server with the fast profile: ``python -m tests.root.provision_main FOLDER flush|keep``.

Prints the server's process id when it is provisioned, and stays. ``keep`` leaves the declarations in memory.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from callboard.runtime.config import NatsSettings, ServerSettings, Settings
from callboard.runtime.embedded import EmbeddedServer
from callboard.runtime.host import provision_embedded
from callboard.runtime.server_folder import DataFolder


async def main(folder: Path, mode: str) -> None:
    """Serve until killed."""
    if mode == "keep":
        DataFolder.flush = lambda self: None  # type: ignore[method-assign]
    server = ServerSettings(data_dir=folder, port=0, profile="fast")
    async with EmbeddedServer(server) as embedded:
        await provision_embedded(Settings(server=server, nats=NatsSettings(url=embedded.url)))
        sys.stdout.write(f"{embedded.state.pid}\n")
        sys.stdout.flush()
        await embedded.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
