"""An error of the wire is an exception like any other."""

import pickle

import pytest

from reasonrt.errors import ReasonRTError
from reasonrt.serve.wire.errors import ApiError

ERRORS = [ApiError(503, "full"), ApiError(404, "no", "model", "model_not_found"), ApiError(429, "x", retry_after_s=2.5)]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_error_is_hashable_and_equal_to_itself_alone(error: ApiError) -> None:
    assert len({error, ApiError(*error.args)}) == 2
    assert error == error
    assert error != ApiError(*error.args)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_error_is_the_same_after_a_pickle(error: ApiError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert type(copy) is ApiError
    assert (vars(copy), copy.args, str(copy)) == (vars(error), error.args, str(error))


def test_error_says_what_it_is() -> None:
    assert str(ERRORS[1]) == "no"
    assert repr(ERRORS[1]) == "ApiError(404, 'no', 'model', 'model_not_found', None)"


def test_error_can_be_raised_from_a_group_and_a_context() -> None:
    """What hashes and compares exceptions: groups, `contextlib`, `traceback`."""
    with pytest.raises(ExceptionGroup) as raised:
        raise ExceptionGroup("both", ERRORS[:2])
    matched, rest = raised.value.split(lambda error: isinstance(error, ApiError) and error.status == 503)

    assert matched is not None
    assert rest is not None
    assert [type(error) for error in (*matched.exceptions, *rest.exceptions)] == [ApiError, ApiError]
    assert isinstance(ERRORS[0], ReasonRTError)
