"""What must not be printed: keys, passwords and tokens, by where they stand and by what they are called.

What is a secret by its type is a `pydantic.SecretStr`, and masks itself; this is for the rest: settings of other
packages, values that are refused, texts of libraries.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

MASK: Final = "**********"
MIN_KEY_CHARACTERS: Final = 16

_NAMES = (
    r"api[_-]?keys?|(?:access|private|secret|signing)[_-]?key|passwords?|passwd|secrets?|credentials?|auth[_-]?token"
)
_IS_SECRET = re.compile(
    rf"(?:^|[_.-])(?:{_NAMES}|authorization|bearer)$|^(?:key|token)$|(?:access|api|hf|refresh)[_-]token$", re.I
)
_SAID = re.compile(
    rf"((?:{_NAMES}|authorization)['\"]?\s*[:=]\s*(?:(?:bearer|basic)\s+)?)"
    r"(?:[{\[].*|\"[^\"]*\"?|'[^']*'?|[^\s,;&]+)",
    re.I,
)
_BEARER = re.compile(r"(\bbearer\s+)[^\s'\",;]{8,}", re.I)
_LOGIN = re.compile(r"(://)\S*(?=@)")


def is_secret(name: object) -> bool:
    """Whether a setting of this name holds a secret, such as `api_key`."""
    return isinstance(name, str) and _IS_SECRET.search(name) is not None


def masked(value: Any) -> Any:
    """`value` with a mask in the place of each secret in it."""
    if isinstance(value, Mapping):
        return {
            key: MASK if is_secret(key) and each not in (None, "", {}, []) else masked(each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(each) for each in value]
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """`text` without the logins in its URLs, and without what it calls a key, a password or a bearer."""
    for pattern in (_SAID, _BEARER, _LOGIN):
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text


def masked_url(url: str) -> str:
    """An address without its login, also where it is none."""
    login, at, rest = url.rpartition("@")
    scheme, slashes, _ = login.rpartition("://")
    return f"{scheme}{slashes}{MASK}@{rest}" if at else url


def can_be_sent(key: str) -> bool:
    """Whether a header can hold `key` so that it arrives as it is: printable ASCII, no space at an end."""
    return bool(key) and key.isascii() and key.isprintable() and key == key.strip()
