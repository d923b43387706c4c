"""Replicas behind one name: every address of it is one (a headless service of Kubernetes)."""

from __future__ import annotations

import asyncio
import logging
import socket
from urllib.parse import urlsplit

from catena.serve.gateway.pool import Pool

logger = logging.getLogger(__name__)
DNS_S = 5.0


async def look_up(pool: Pool, target: str) -> None:
    """Point a pool at every address of a name, again and again."""
    parts = urlsplit(target)
    port = parts.port or 80
    while not pool.closed:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            hosts = sorted({str(entry[4][0]) for entry in found})
            pool.point_at([f"{parts.scheme}://{f'[{one}]' if ':' in one else one}:{port}" for one in hosts])
        except OSError as error:  # the name may be unknown for a while; those that are known stay
            logger.warning("%s cannot be looked up: %s", parts.hostname, error)
        await asyncio.sleep(DNS_S)
