"""An S3 server with one bucket, the files of which are files of a folder: rclone's."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

KEY, SECRET = "someone", "something-secret"


@asynccontextmanager
async def serve_bucket(folder: Path) -> AsyncIterator[Mapping[str, str]]:
    """Serve `folder` with the bucket `bucket`; yields the environment in which a client finds it."""
    (folder / "bucket").mkdir()
    server = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("rclone"),
        *("serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}", "--vfs-cache-mode", "off"),
        *("--config", "", str(folder)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert server.stderr is not None
    try:
        url = None
        while url is None:
            line = await server.stderr.readline()
            assert line, "rclone ended"
            url = re.search(r"http://127\.0\.0\.1:\d+", line.decode())
        yield {
            "AWS_ENDPOINT_URL": url[0],
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
    finally:
        server.terminate()
        await server.wait()
