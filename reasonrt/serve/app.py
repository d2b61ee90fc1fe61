"""The routes, and what is put together to serve them. The same app stands before one process and before Ray."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from reasonrt.errors import ReasonRTError
from reasonrt.masking import without_folders
from reasonrt.plugins import FAILURES, reason_of
from reasonrt.policies.registry import schema_of_options
from reasonrt.serve.auth import ANONYMOUS, AuthMiddleware
from reasonrt.serve.backends.base import Backend
from reasonrt.serve.catalog import Catalog, Job
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.exposure import warn_of_open_ports
from reasonrt.serve.gateway import Gateway
from reasonrt.serve.metrics import Metrics
from reasonrt.serve.page import page_files
from reasonrt.serve.reply import Reply
from reasonrt.serve.wire.errors import ApiError, to_api_error
from reasonrt.serve.wire.rendering import Layout, ReplyFormat
from reasonrt.serve.wire.requests import ChatRequest, CompletionRequest, Generation, OwnFields, parse
from reasonrt.serve.wire.response_answers import RESPONSE_EVENTS, ResponseResource
from reasonrt.serve.wire.response_rendering import ResponseFormat
from reasonrt.serve.wire.response_request import ResponseRequest
from reasonrt.serve.wire.responses import (
    Answer,
    ChatCompletion,
    ChatCompletionChunk,
    Error,
    Health,
    Model,
    ModelList,
    Readiness,
    TextCompletion,
    TextCompletionChunk,
    Version,
)
from reasonrt.tasks import read_text

Asked = TypeVar("Asked", bound=Generation)

_log = logging.getLogger(__name__)
_BODY_S = 30.0
_LEAVE_S = 20.0  # engines close their processes one after the other
_LEAVE_START_S = 2.0
_SCHEMA = "#/components/schemas/{model}"
_OPTIONS = "Options-"
"""Begins the name of the schema of a policy's options."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error} for status in (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503)
}


def build_app(backend: Backend, catalog: Catalog, config: ServeConfig) -> FastAPI:
    """The endpoint before `backend`, which is entered when the server starts and left when it ends."""
    metrics = Metrics()

    gateway = Gateway(backend, config, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        has_started = False

        async def hold() -> None:
            nonlocal has_started
            async with backend:  # it starts while the server already answers, and says that it is not ready
                has_started = True
                _log.info("the engines are warm: requests are taken")
                await asyncio.to_thread(warn_of_open_ports)
                await asyncio.to_thread(app.openapi)  # made once, and not while a request waits
                await asyncio.Event().wait()

        app.state.holding = asyncio.create_task(hold())
        yield
        app.state.holding.cancel()  # also while it starts
        await asyncio.wait({app.state.holding}, timeout=_LEAVE_S if has_started else _LEAVE_START_S)

    app = FastAPI(
        title="reasonrt",
        version=version("reasonrt"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to wherever a Host header says
        responses=_ERRORS,
    )
    app.state.gateway = gateway
    app.add_middleware(AuthMiddleware, config=config, metrics=metrics)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients in browsers tell their version and more; no cookie is read here
            expose_headers=["retry-after", "warning", "x-request-id"],
        )
    app.add_exception_handler(ReasonRTError, _tell)
    app.add_exception_handler(HTTPException, _tell)
    _add_solving(app, catalog, config)
    _add_models(app, catalog)
    _add_state(app, metrics)
    _add_page(app)
    app.openapi = lambda: _openapi(app, catalog)  # type: ignore[method-assign]
    return app


def _add_solving(app: FastAPI, catalog: Catalog, config: ServeConfig) -> None:
    async def answer(http: Request, model: type[Asked], layout_of: Callable[[Asked, Job], Layout]) -> Response:
        key = http.state.key
        most_bytes = _most_body_bytes(http, catalog.most_body_bytes)
        room = await app.state.gateway.take_room(http.state.held, key, most_bytes)
        content = await app.state.gateway.unless_cut_off(_read_body(http, catalog.most_body_bytes))
        room.shrink(len(content))
        body = await read_text(len(content), parse, model, content)
        num_tokenized = len(content) if body.needs_vocabulary else 0
        job = await read_text(num_tokenized, catalog.to_job, body, "" if key == ANONYMOUS else key, len(content))
        return Reply(app.state.gateway, job, layout_of(body, job), key, http.state.note)

    @app.post("/v1/chat/completions", **_described(ChatRequest, ChatCompletion, _chunks(ChatCompletionChunk)))
    async def chat_completions(http: Request) -> Response:
        return await answer(http, ChatRequest, lambda _, job: ReplyFormat("chat", job, config.reasoning_fields))

    @app.post("/v1/completions", **_described(CompletionRequest, TextCompletion, _chunks(TextCompletionChunk)))
    async def completions(http: Request) -> Response:
        return await answer(http, CompletionRequest, lambda _, job: ReplyFormat("text", job, config.reasoning_fields))

    @app.post("/v1/responses", **_described(ResponseRequest, ResponseResource, _events()))
    async def responses(http: Request) -> Response:
        return await answer(http, ResponseRequest, ResponseFormat)


def _add_models(app: FastAPI, catalog: Catalog) -> None:
    def describe(model_id: str) -> Model:
        facts = catalog.facts(model_id)
        return Model(id=model_id, object="model", created=0, owned_by="reasonrt", **facts)

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(object="list", data=[describe(model_id) for model_id in catalog.model_ids])

    @app.get("/v1/models/{model_id}")
    async def model(model_id: str) -> Model:
        if not catalog.has(model_id):
            known = ", ".join(catalog.model_ids)
            message = f"there is no model {model_id[:64]!r}; there are {known}"
            raise ApiError(404, message, "model", "model_not_found")
        return describe(model_id)


def _add_state(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> Health:
        """The process is alive."""
        return Health(alive=True)

    @app.get("/ready", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        """Every engine is warm, and the server is not shutting down."""
        reason = without_folders(app.state.gateway.unready())
        response.status_code = 503 if reason else 200
        return Readiness(ready=False, reason=reason) if reason else Readiness(ready=True)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/version")
    async def show_version() -> Version:
        return Version(version=version("reasonrt"))


def _add_page(app: FastAPI) -> None:
    async def show(http: Request) -> Response:
        content, headers = page_files()[http.url.path]
        return Response(content, headers=headers)

    for path in page_files():
        app.add_route(path, show, ["GET"])


def _most_body_bytes(http: Request, most_bytes: int) -> int:
    """How many bytes the body of a request has, or may have where it does not say so.

    Raises:
        ApiError: it is of another kind than is read here, or too large.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page may send any other kind to anywhere without being asked
        raise ApiError(415, "the body must be of content-type application/json")
    length = http.headers.get("content-length", "")
    if not length.isdecimal():  # it comes in chunks
        return most_bytes
    if len(length) > 18 or int(length) > most_bytes:
        raise _too_large(most_bytes)
    return int(length)


def _too_large(most_bytes: int) -> ApiError:
    return ApiError(413, f"the body must have at most {most_bytes} bytes on this server")


async def _read_body(http: Request, most_bytes: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in http.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise _too_large(most_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {_BODY_S:g} s") from None
    except ClientDisconnect:
        raise ApiError(499, "the caller left") from None
    return bytes(body)


async def _tell(http: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        response = ApiError(error.status_code, error.detail).response()
        response.headers.update(error.headers or {})
        return response
    told = to_api_error(error, http.state.request_id)
    http.state.note["error"] = told.code or "invalid"
    if told.param:
        http.state.note["param"] = told.param[:128]
    return told.response()


def _described(request: type[BaseModel], answer: type[Answer], event: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads and writes its bodies itself."""
    body = {"required": True, "content": {"application/json": {"schema": _reference(request)}}}
    return {
        "openapi_extra": {"requestBody": body},
        "responses": {200: {"model": answer, "content": {"text/event-stream": {"schema": event}}}},
    }


def _chunks(chunk: type[Answer]) -> dict[str, Any]:
    """The schema of an event of a stream of chunks; one that breaks off ends with an error."""
    data = _json_text(chunk, Error)
    return {"type": "object", "properties": {"data": {"anyOf": [data, {"const": "[DONE]"}]}}, "required": ["data"]}


def _events() -> dict[str, Any]:
    """The schema of an event of `/v1/responses`; its name is the type in its data."""
    properties = {"event": {"type": "string"}, "data": _json_text(*RESPONSE_EVENTS)}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


def _json_text(*models: type[BaseModel]) -> dict[str, Any]:
    either = {"anyOf": list(map(_reference, models))}
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": either}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _SCHEMA.format(model=model.__name__)}


def _openapi(app: FastAPI, catalog: Catalog) -> dict[str, Any]:
    if app.openapi_schema is None:
        model_ids = catalog.model_ids
        with_options = "^(" + "|".join(map(re.escape, model_ids)) + ")@"
        model = {"anyOf": [{"enum": list(model_ids)}, {"type": "string", "pattern": with_options, "maxLength": 256}]}
        asked = (ChatRequest, CompletionRequest, ResponseRequest)
        told = (ChatCompletionChunk, TextCompletionChunk, *RESPONSE_EVENTS)
        kinds: list[Any] = [*((kind, "validation") for kind in asked), *((kind, "serialization") for kind in told)]
        _, schemas = models_json_schema(kinds, ref_template=_SCHEMA)
        whole = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for kind in asked:
            schemas["$defs"][kind.__name__]["properties"]["model"] = model
        options = _options_of(catalog.policies)
        of_any = [{"$ref": _SCHEMA.format(model=name)} for name in options if name.startswith(_OPTIONS)]
        schemas["$defs"][OwnFields.__name__]["properties"]["options"]["anyOf"] = of_any
        whole["components"]["schemas"] |= options | schemas["$defs"]
        app.openapi_schema = whole
    return app.openapi_schema


def _options_of(policies: Sequence[str]) -> dict[str, Any]:
    """The schema of each policy's options by its name, and of what they refer to."""
    schemas: dict[str, Any] = {}
    for policy in policies:
        try:
            schema, definitions = schema_of_options(policy, _SCHEMA)
        except FAILURES as error:  # it may be code of others: the rest is described
            _log.warning("the options of policy %r cannot be described: %s", policy, reason_of(error))
            continue
        schemas |= definitions | {f"{_OPTIONS}{policy}": schema}
    return schemas
