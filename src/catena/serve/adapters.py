"""`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, as vLLM has them: adapters that come and go.

Where vLLM takes a path, this takes the reference of a stored adapter: nothing beside the workspace can be read. The
routes are there only where the server was given a workspace (`catena serve`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from catena.serve.config import ServeConfig
from catena.serve.endpoint import Counters, Endpoint, Reply
from catena.serve.models import Models, Target
from catena.serve.wire import Body, BodyT, WireError

AdapterFolder = Callable[[str], Path]
"""Takes the reference of a stored adapter and returns its folder. Raises `CatenaError` for what is none."""
AdapterName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][\w.-]*$")]


@runtime_checkable
class TakesAdapters(Protocol):
    """A generator that adapters can be loaded into while it answers."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Let requests answer with an adapter."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Take an adapter away from requests to come."""
        ...


class UnloadRequest(Body):
    """The body of `POST /v1/unload_lora_adapter`."""

    model: str = ""
    """Beside which model; may be left out where the server has one only."""
    lora_name: AdapterName


class LoadRequest(UnloadRequest):
    """The body of `POST /v1/load_lora_adapter`."""

    lora_path: Annotated[str, Field(min_length=1)]
    """The stored adapter: `name`, `name@3`, `name@production`."""
    load_inplace: bool = False
    """Take the place of the one that has the name; who is on the way still answers with that."""


class _Desk(Endpoint[BodyT]):
    """What both routes share."""

    summary: ClassVar[str]

    def __init__(self, models: Models, config: ServeConfig, counters: Counters, folder: AdapterFolder) -> None:
        super().__init__(models, config, counters)
        self.folder = folder

    def target(self, request: Any) -> Target:
        """Return the model that the adapter is for; raises `WireError`."""
        names = list(self.models.generators)
        if not request.model and len(names) > 1:
            raise WireError(f"which model? It is one of {', '.join(names)}", param="model")
        target = self.models.resolve(request.model or names[0])
        if target.adapter:
            raise WireError(f"{target.name!r} is an adapter itself", param="model")
        return target


def _taking(target: Target) -> TakesAdapters:
    if not isinstance(target.generator, TakesAdapters):
        raise WireError(f"the model {target.name!r} takes no adapters while it runs", param="model")
    return target.generator


class LoadAdapter(_Desk[LoadRequest]):
    """Let a model answer with a stored adapter, by the adapter's name."""

    route = "load_lora_adapter"
    body = LoadRequest

    async def answer(self, request: LoadRequest, target: Target, reply: Reply) -> None:
        """Load it."""
        generator, name = _taking(target), request.lora_name
        if name in self.models.adapters(target.name) and not request.load_inplace:
            raise WireError(f"the adapter {name!r} is loaded already; load_inplace replaces it", param="lora_name")
        await self.run(lambda: generator.load_adapter(name, self.folder(request.lora_path)))
        await reply.json({"id": f"{target.name}:{name}", "object": "model", "parent": target.name, "loaded": True})


class UnloadAdapter(_Desk[UnloadRequest]):
    """Take an adapter away from requests to come."""

    route = "unload_lora_adapter"
    body = UnloadRequest

    async def answer(self, request: UnloadRequest, target: Target, reply: Reply) -> None:
        """Unload it."""
        generator, name = _taking(target), request.lora_name
        if name not in self.models.adapters(target.name):
            message = f"no adapter {name!r} is loaded beside {target.name!r}"
            raise WireError(message, param="lora_name", code="model_not_found", status=404)
        await self.run(lambda: generator.unload_adapter(name))
        await reply.json({"id": f"{target.name}:{name}", "object": "model", "parent": target.name, "loaded": False})


ADAPTER_ENDPOINTS: dict[str, type[_Desk[Any]]] = {
    "/v1/load_lora_adapter": LoadAdapter,
    "/v1/unload_lora_adapter": UnloadAdapter,
}
