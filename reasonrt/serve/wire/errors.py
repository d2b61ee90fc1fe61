"""Errors as the wire knows them; the one table from ours to theirs."""

import math

from starlette.responses import Response

from reasonrt.errors import CapabilityError, ConfigError, EngineError, ReasonRTError, RequestError
from reasonrt.serve.wire.responses import Error, ErrorBody

OVERLOADED = "overloaded"
"""The code of what there is no room for now."""

ABSENT = "engine_absent"
"""The code of what another replica may have an engine for; no caller sees it."""

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
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    def body(self) -> Error:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        # a message may quote half of a surrogate pair, which UTF-8 cannot hold
        message = self.message.encode(errors="backslashreplace").decode()
        return Error(error=ErrorBody(message=message, type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        headers = {"x-should-retry": "false" if self.retry_after_s is None else "true"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(self.body().to_json(), self.status, headers, "application/json")


def to_api_error(error: BaseException) -> ApiError:
    """What the caller is told of `error`; of one that is not ours, no more than that it happened."""
    match error:
        case ApiError():
            return error
        case RequestError() | CapabilityError():
            return ApiError(400, str(error))
        case ConfigError():  # of the policy that was asked for; the others are served
            return ApiError(400, str(error), code="not_configured")
        case EngineError():
            return ApiError(503, str(error), code="engine_error", retry_after_s=2.0)
        case _:
            return ApiError(500, "the server failed; its log has the cause under this request's id", code="internal")
