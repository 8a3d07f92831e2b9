"""The client of an endpoint: it talks to the host that was named and no other, and reads no more than an answer is."""

from __future__ import annotations

from typing import Any

from nlhf_zoo.oracles.endpoint.trouble import Garbled

__all__ = ["LONGEST_ANSWER", "open_client"]

LONGEST_ANSWER = 32 << 20
"""Bytes, unpacked: room for the log-probabilities of 20,000 tokens. A gzip of 1 MB may unpack to a thousand."""


def open_client(key: str, base_url: str, timeout: float) -> Any:
    """An `openai.AsyncOpenAI` without retries, that follows no redirect: the texts would go along with it."""
    import openai

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **how: Any) -> Any:
            response = await super().send(request, stream=True, **how)
            try:
                content = await _read(response)
            finally:
                await response.aclose()
            packing = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in packing]
            return type(response)(response.status_code, headers=headers, content=content, request=request)

    return openai.AsyncOpenAI(
        api_key=key,
        base_url=base_url,
        max_retries=0,
        timeout=timeout,
        http_client=Bounded(follow_redirects=False, timeout=timeout),
    )


async def _read(response: Any) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > LONGEST_ANSWER:
            raise Garbled(f"longer than {LONGEST_ANSWER:,} bytes")
    return b"".join(parts)
