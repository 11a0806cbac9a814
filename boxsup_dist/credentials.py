"""Credentials in URIs: found and blanked out. Error messages are shown without them; files and stores refuse them."""

from __future__ import annotations

import re

_BLANK = "***"
# user, user:password or key:secret before an @. A secret may hold slashes: it follows a colon that begins no port.
_USER = re.compile(r"(?<=://)(?:[^/\s@]*|[^/\s@:]*:(?!\d+/)[^\s@]*)@")
# What follows the beginning of a URI. A ? in the name of a local file begins no parameters.
_URI = re.compile(r"(?<!file)://.*", re.DOTALL)
_PARAMETER = re.compile(
    r"(?<=[?&])((?:[\w-]*(?:token|secret|password|signature|credential|key)[\w-]*|sig)=)[^&\s'\"]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """The text with *** in place of credentials in URIs: before an @, and values of parameters such as ?token=."""
    without_users = _USER.sub(f"{_BLANK}@", text)
    return _URI.sub(lambda uri: _PARAMETER.sub(rf"\1{_BLANK}", uri[0]), without_users)


def has_credentials(uri: str) -> bool:
    """Whether `redact` would blank out a part of the URI."""
    return redact(uri) != uri
