"""What must not be printed: keys, passwords and tokens, by where they stand and by what they are called.

What is a secret by its type is a `pydantic.SecretStr`, and masks itself; this is for the rest: settings of other
packages, values that are refused, texts of libraries. And what callers of a server need not know: its folders.
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
_QUERY = re.compile(
    r"([?&;][\w.-]*(?:key|token|secret|passw(?:or)?d|pwd|sig(?:nature)?|auth|credential|code)[\w.-]*=)[^&;#\s'\"]+",
    re.I,
)
_NAME = r"[^\s/'\"`,;:()<>\[\]{}|]+"
_FOLDERS = (
    *(
        re.compile(rf"(?<={quote})(?:~|\.{{1,2}})?/(?!v1/)(?:[^{quote}\n/]+/)*([^{quote}\n/]+)(?={quote})")
        for quote in "'\""
    ),
    re.compile(rf"(?<![\w/.:~<#@$-])(?:~|\.{{1,2}})?/(?!v1/)(?:{_NAME}/)*({_NAME})"),
    re.compile(r"(?<![\w/.:~<#@$-])(?:[\w.-]+/)+([\w.-]+\.[A-Za-z][A-Za-z0-9]*)(?![\w/])"),  # a folder from here on
)


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
    """`text` without logins and keys in its URLs, and without what it calls a key, a password or a bearer."""
    for pattern in (_SAID, _BEARER, _LOGIN, _QUERY):
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text


def without_folders(text: str) -> str:
    """`text` with each path in it cut to the name of its file; routes of the endpoint and URLs stay as they are.

    Of a relative one that means a path whose last part has an ending, since `this/that` may be words.
    """
    for pattern in _FOLDERS:
        text = pattern.sub(r"\1", text)
    return text


def masked_url(url: str) -> str:
    """An address without its login and the keys in its query, also where it is none."""
    login, at, rest = url.rpartition("@")
    scheme, slashes, _ = login.rpartition("://")
    return _QUERY.sub(rf"\g<1>{MASK}", f"{scheme}{slashes}{MASK}@{rest}" if at else url)


def can_be_sent(key: str) -> bool:
    """Whether a header can hold `key` so that it arrives as it is: printable ASCII, no space at an end."""
    return bool(key) and key.isascii() and key.isprintable() and key == key.strip()
