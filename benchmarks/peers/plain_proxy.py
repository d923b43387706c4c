"""The least that a proxy in Python can be, over one client or the other: `python plain_proxy.py aiohttp URL`."""

from __future__ import annotations

import json
import sys
from typing import Any

from catena.serve.server import listen, serve

kind, upstream = sys.argv[1], sys.argv[2]
client: Any = None
HEADERS = {"content-type": "application/json"}


async def read(receive: Any) -> bytes:
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body"):
            return data


async def start(send: Any, status: int, headers: Any) -> None:
    kept = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    kept = [pair for pair in kept if pair[0] in (b"content-type", b"content-length")]
    await send({"type": "http.response.start", "status": status, "headers": kept})


async def over_aiohttp(path: str, body: bytes, send: Any) -> None:
    global client
    import aiohttp

    if client is None:
        client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
    async with client.post(upstream + path, data=body, headers=HEADERS) as response:
        await start(send, response.status, response.headers)
        async for piece in response.content.iter_any():
            await send({"type": "http.response.body", "body": piece, "more_body": True})


async def over_httpx2(path: str, body: bytes, send: Any) -> None:
    global client
    import httpx2

    if client is None:
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=1000)
        client = httpx2.AsyncClient(trust_env=False, timeout=60, limits=limits)
    async with client.stream("POST", upstream + path, content=body, headers=HEADERS) as response:
        await start(send, response.status_code, response.headers)
        async for piece in response.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})


async def app(scope: Any, receive: Any, send: Any) -> None:
    body = json.dumps(json.loads(await read(receive))).encode()
    await (over_aiohttp if kind == "aiohttp" else over_httpx2)(scope["path"], body, send)
    await send({"type": "http.response.body", "body": b""})


serve(app, listen(port=0), on_ready=lambda url: print(json.dumps({"url": url}), flush=True))
