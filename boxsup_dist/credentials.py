"""Credentials in URIs: found and blanked out. Every InputError is told without them; files and stores refuse them."""

from __future__ import annotations

import re

_BLANK = "***"
# user, user:password or key:secret before an @. A secret may hold slashes; then a colon that begins no port tells it.
_USER = re.compile(r"(?<=://)(?:[^/\s@]*|[^/\s@:]*:(?!\d+/)[^\s@]*)@")
_PARAMETER = re.compile(
    r"(?<=[?&])((?:[\w-]*(?:token|secret|password|signature|credential|key)[\w-]*|sig)=)[^&\s'\"]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """The text with *** for the credentials in its URIs: before an @, and values of parameters such as ?token=."""
    return _PARAMETER.sub(rf"\1{_BLANK}", _USER.sub(f"{_BLANK}@", text))


def has_credentials(uri: str) -> bool:
    """Whether a URI holds what `redact` blanks out."""
    return redact(uri) != uri
