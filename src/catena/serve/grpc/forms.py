"""Between gRPC messages and the bodies of the REST routes. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from catena.serve.grpc import catena_pb2 as pb
from catena.serve.wire import WireError

SAMPLING = ("max_tokens", "temperature", "top_p", "seed", "n", "user")


def chat_body(request: pb.ChatRequest, *, stream: bool) -> bytes:
    """Return the body of a chat."""
    return _body(request, {"messages": [_message(one) for one in request.messages]}, stream=stream)


def generate_body(request: pb.GenerateRequest, *, stream: bool) -> bytes:
    """Return the body of a completion."""
    return _body(request, {"prompt": request.prompt}, stream=stream)


def embed_body(request: pb.EmbedRequest) -> bytes:
    """Return the body of a request for vectors."""
    more = {"dimensions": request.dimensions} if request.HasField("dimensions") else {}
    return orjson.dumps({"model": request.model, "input": list(request.input), **more})


def _body(request: pb.ChatRequest | pb.GenerateRequest, own: Mapping[str, Any], *, stream: bool) -> bytes:
    told: dict[str, Any] = {"model": request.model, **own}
    sampling = request.sampling
    told |= {name: getattr(sampling, name) for name in SAMPLING if sampling.HasField(name)}
    if sampling.stop:
        told["stop"] = list(sampling.stop)
    if stream:
        told |= {"stream": True, "stream_options": {"include_usage": True}}
    if request.more_json:
        told = {**_more(request.more_json, told), **told}
    return orjson.dumps(told)


def _more(text: str, told: Mapping[str, Any]) -> dict[str, Any]:
    try:
        more = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WireError(f"more_json is not valid JSON: {error}", param="more_json", code="invalid_json") from error
    if not isinstance(more, dict):
        raise WireError("more_json must be a JSON object", param="more_json", code="invalid_type")
    if double := sorted({*told, "stream", "stream_options"} & more.keys()):
        raise WireError(f"more_json may not have {double[0]}", param="more_json", code="invalid_value")
    return more


def _message(one: pb.Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": one.role, "content": one.content}
    if one.tool_call_id:
        told["tool_call_id"] = one.tool_call_id
    if one.tool_calls:
        told["content"] = one.content or None
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in one.tool_calls
        ]
    return told


def chat_reply(data: bytes) -> pb.ChatReply:
    """Return a chat's answer."""
    body = orjson.loads(data)
    choices = []
    for choice in body["choices"]:
        said = choice["message"]
        message = pb.Message(
            role=said.get("role") or "assistant", content=said.get("content") or "", tool_calls=_calls(said)
        )
        choices.append(pb.Choice(index=choice["index"], message=message, finish_reason=choice["finish_reason"] or ""))
    return pb.ChatReply(**_head(body), choices=choices)


def generate_reply(data: bytes) -> pb.GenerateReply:
    """Return a completion's answer."""
    body = orjson.loads(data)
    choices = [
        pb.Text(index=choice["index"], text=choice["text"], finish_reason=choice["finish_reason"] or "")
        for choice in body["choices"]
    ]
    return pb.GenerateReply(**_head(body), choices=choices)


def embed_reply(data: bytes) -> pb.EmbedReply:
    """Return vectors, in the order of the texts."""
    body = orjson.loads(data)
    rows = sorted(body["data"], key=lambda row: row["index"])
    vectors = [pb.Vector(values=row["embedding"]) for row in rows]
    return pb.EmbedReply(model=body["model"], vectors=vectors, usage=_usage(body.get("usage")))


def models_reply(data: bytes) -> pb.ListModelsReply:
    """Return the models."""
    entries = orjson.loads(data)["data"]
    return pb.ListModelsReply(
        models=[pb.Model(id=one["id"], created=one["created"], owned_by=one["owned_by"]) for one in entries]
    )


def pieces(data: Mapping[str, Any]) -> Iterator[pb.Piece]:
    """Yield what one event of a stream says: a piece for each choice, or the usage alone."""
    head: dict[str, Any] = {"id": data.get("id") or "", "model": data.get("model") or ""}
    for choice in data.get("choices") or ():
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        calls, ending = _calls(delta), choice.get("finish_reason") or ""
        if text or calls or ending:
            yield pb.Piece(**head, index=choice["index"], text=text, tool_calls=calls, finish_reason=ending)
    if data.get("usage"):
        yield pb.Piece(**head, usage=_usage(data["usage"]))


def _head(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": body.get("id") or "",
        "model": body.get("model") or "",
        "created": body.get("created") or 0,
        "usage": _usage(body.get("usage")),
        "system_fingerprint": body.get("system_fingerprint") or "",
    }


def _usage(told: Mapping[str, Any] | None) -> pb.Usage:
    found = told or {}
    return pb.Usage(
        prompt_tokens=found.get("prompt_tokens") or 0,
        completion_tokens=found.get("completion_tokens") or 0,
        total_tokens=found.get("total_tokens") or 0,
        cached_tokens=(found.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )


def _calls(said: Mapping[str, Any]) -> list[pb.ToolCall]:
    calls: Iterable[Mapping[str, Any]] = said.get("tool_calls") or ()
    return [
        pb.ToolCall(id=call.get("id") or "", name=function.get("name") or "", arguments=function.get("arguments") or "")
        for call in calls
        for function in (call.get("function") or {},)
    ]
