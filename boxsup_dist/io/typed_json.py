"""JSON as typed values: a text that does not fit is an error that names the field.

A sealed file also holds a hash of its own content, so that no changed value is read as another one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, TypeVar, cast

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage

T = TypeVar("T")
_SEAL = "seal"


def parse_json(kind: type[T], data: bytes, *, file: str, place: str = "") -> T:
    """The value of a JSON text.

    Args:
        kind: Type of the value: a dataclass or a TypedDict.
        data: The JSON text, UTF-8.
        file: Where the text is from, for the error.
        place: The part of the file that `data` is, for the error, such as "line 3".

    Raises:
        InputError: The text is no JSON (`expected` is "JSON"), or a field is missing, unknown or of another type.
    """
    from pydantic import ValidationError  # here, as every command imports this module: 0.1 s

    adapter: Any = _adapter(kind)  # type: ignore[arg-type]  # types are hashable
    try:
        return cast(T, adapter.validate_json(data, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            text = data[:80].decode(errors="replace")
            raise InputError("not valid JSON", file=file, field=place or None, value=text, expected="JSON") from None
        field = ".".join(map(str, first["loc"]))
        where = ", ".join(part for part in (place, field) if part)
        found = None if first["type"] == "missing" else first["input"]
        raise InputError(first["msg"], file=file, field=where or None, value=found) from None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def fingerprint(value: Any) -> str:
    """Return a hash of a JSON value, 16 hex digits, that is the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_sealed(uri: str, value: dict[str, Any]) -> None:
    """Write a JSON object and the hash of its content; as `storage.write_json`."""
    stored = json.loads(json.dumps(value))
    storage.write_json(uri, stored | {_SEAL: fingerprint(stored)})


def parse_sealed(kind: type[T], value: Any, *, file: str) -> T:
    """The typed value of an object that `write_sealed` wrote and `storage.read_json` read.

    Raises:
        InputError: It is no such object, a field is missing or of another type, or a value is not the one written.
    """
    content = {name: item for name, item in value.items() if name != _SEAL} if isinstance(value, dict) else value
    found = parse_json(kind, json.dumps(content).encode(), file=file)
    seal, expected = value.get(_SEAL), fingerprint(content)
    if seal != expected:
        raise InputError(
            "the content is not what was written", file=file, field=_SEAL, value=seal, expected=f"{expected}, its hash"
        )
    return found
