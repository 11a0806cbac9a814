"""JSON as typed values: a text that does not fit is an error that names the field."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from boxsup_dist.errors import InputError

T = TypeVar("T")


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

    try:
        key: Any = kind  # mypy takes a type for no hashable value
        parsed: T = _adapter(key).validate_json(data, strict=True)
        return parsed
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            text = data[:80].decode(errors="replace")
            raise InputError("not valid JSON", file=file, field=place or None, value=text, expected="JSON") from None
        field = ".".join(map(str, first["loc"]))
        where = ", ".join(part for part in (place, field) if part)
        value = None if first["type"] == "missing" else first["input"]
        raise InputError(first["msg"], file=file, field=where or None, value=value) from None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
