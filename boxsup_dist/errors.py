"""Errors that a user can cause or must act on; each says where, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from boxsup_dist.credentials import redact


class InputError(ValueError):
    """Bad input: names the file, the field, the value found and what was expected, as far as they apply.

    The text never holds the credentials of a URI.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        field: str | None = None,
        value: object = None,
        expected: str | None = None,
    ) -> None:
        self.problem, self.file, self.field, self.value, self.expected = problem, file, field, value, expected
        parts = [problem]
        if file is not None:
            parts.append(f"file: {file}")
        if field is not None:
            parts.append(f"field: {field}")
        if value is not None:
            parts.append(f"found: {value!r}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        super().__init__(redact("; ".join(parts)))

    def __reduce__(self) -> tuple:
        # Ray pickles exceptions; the default rebuilds from args and would lose the keyword fields.
        fields = {"file": self.file, "field": self.field, "value": self.value, "expected": self.expected}
        return (_rebuild, (type(self), self.problem, fields))


def _rebuild(kind: type[InputError], problem: str, fields: dict) -> InputError:
    return kind(problem, **fields)


class MissingFileError(InputError):
    """A file is not there."""


class StorageError(InputError):
    """A store refuses, has no such bucket, or did not answer though it was tried again and again."""


class NoRoomError(InputError):
    """Ray has no room for an object, in memory or on disk."""


class RecordError(InputError):
    """One image or its annotation can't be used."""


@contextmanager
def decoding(image_id: str, file: object = None) -> Iterator[None]:
    """What damaged bytes raise inside becomes a RecordError that names the image."""
    try:
        yield
    except (OSError, SyntaxError) as error:  # Pillow's two words for damaged files
        raise RecordError(f"does not decode: {error}", file=file, field="image_id", value=image_id) from None


class TableError(InputError):
    """A stored table is unfinished, of another kind or version, or does not belong to its partner."""


class WeightsError(InputError):
    """A weight file is missing or does not fit the network."""


class CheckpointError(InputError):
    """A checkpoint is absent, unfinished, damaged or of another network."""


class SettingError(InputError):
    """A setting is out of range, contradicts another one or would have no effect."""


class NonFiniteLossError(InputError):
    """Training met a loss that is not finite; names the records of the batch."""


class LostWorkError(InputError):
    """A unit of work ends the process that computes it, every time: out of memory, or a crash of native code."""
