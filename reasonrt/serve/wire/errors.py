"""Errors as the wire knows them; the one table from ours to theirs."""

import logging
import math

from starlette.responses import Response

from reasonrt.errors import CapabilityError, ConfigError, EngineError, ReasonRTError, RequestError, in_one_line
from reasonrt.masking import without_folders
from reasonrt.serve.wire.responses import Error, ErrorBody

OVERLOADED = "overloaded"
"""The code of what there is no room for now."""

ABSENT = "engine_absent"
"""The code of what another replica may have an engine for; no caller sees it."""

_log = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error"}


class ApiError(ReasonRTError):
    """An answer that is no completion.

    Args:
        status: of HTTP.
        message: for the caller.
        param: the field that is wrong.
        code: a word for programs.
        retry_after_s: set where another try may end better; without it the client is told not to retry.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, message, param, code, retry_after_s)  # all of it, so that it can be pickled
        self.status, self.message, self.code = status, in_one_line(message, 1000), code
        self.param = None if param is None else in_one_line(param)  # the name of a field, which a caller may make up
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    def body(self) -> Error:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return Error(error=ErrorBody(message=self.message, type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        headers = {"x-should-retry": "false" if self.retry_after_s is None else "true"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(self.body().to_json(), self.status, headers, "application/json")


def draining() -> ApiError:
    """What is told while the server ends."""
    return ApiError(503, "the server is shutting down", code="draining", retry_after_s=5.0)


def to_api_error(error: BaseException, request_id: str) -> ApiError:
    """What the caller is told of `error`.

    Of what failed here, no more than that it did: the log has the cause, which may name what is the operator's, such as
    the address of another server and what that one has said. Of the operator's files, their names.
    """
    match error:
        case ApiError():
            return error
        case RequestError() | CapabilityError():
            return ApiError(400, _told_of(error, request_id))
        case ConfigError():  # of the policy that was asked for; the others are served
            return ApiError(400, _told_of(error, request_id), code="not_configured")
        case EngineError():
            _log.error("request %s: an engine failed", request_id, exc_info=error)
            message = f"an engine failed; the server's log has the cause under this request's id, {request_id}"
            return ApiError(503, message, code="engine_error", retry_after_s=2.0)
        case _:
            _log.error("request %s failed", request_id, exc_info=error)
            message = f"the server failed; its log has the cause under this request's id, {request_id}"
            return ApiError(500, message, code="internal")


def _told_of(error: BaseException, request_id: str) -> str:
    """Its message; where paths stand in it, the log has them whole."""
    message = str(error)
    shown = without_folders(message)
    if shown != message:
        _log.info("request %s was told the names of these files alone: %s", request_id, message)
    return shown
