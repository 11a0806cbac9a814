"""Errors that a user can cause or must act on: each says what happened, where, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boxsup_dist.credentials import redact

_MAX_SHOWN = 500  # characters of a value: a damaged file may hold one of megabytes


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
            shown = repr(value)
            parts.append("found: " + (shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]} ..."))
        if expected is not None:
            parts.append(f"expected: {expected}")
        super().__init__(redact("; ".join(parts)))

    def at(
        self,
        *,
        file: object = None,
        field: str | None = None,
        problem: str | None = None,
        kind: type[InputError] | None = None,
    ) -> InputError:
        """This error with what its raiser did not know: `raise error.at(file=uri) from None`.

        Args:
            file: The file, image or table at fault; None keeps what is known.
            field: The field; None keeps what is known.
            problem: Another statement; None keeps it.
            kind: Another class of error; None keeps it.
        """
        return (kind or type(self))(
            problem or self.problem,
            file=self.file if file is None else file,
            field=self.field if field is None else field,
            value=self.value,
            expected=self.expected,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles exceptions; the default rebuilds from args and would lose the keyword fields.
        fields = {"file": self.file, "field": self.field, "value": self.value, "expected": self.expected}
        return (_rebuild, (type(self), self.problem, fields))


def _rebuild(kind: type[InputError], problem: str, fields: dict[str, Any]) -> InputError:
    return kind(problem, **fields)


class MissingFileError(InputError):
    """A file is not there."""


class UnreadableFileError(InputError):
    """A local file is there, but it is a folder, a pipe or a device, or the system refuses to read it."""


class StorageError(InputError):
    """A store refuses, lacks the bucket, or answers wrongly."""


class StoreUnavailableError(StorageError):
    """A store is away for longer than we wait. A fault that passes: a training starts again from its checkpoint."""


class LeaseError(InputError):
    """Another process writes into a folder that has one writer, or took it over."""


class NoRoomError(InputError):
    """Ray has no room for an object, neither in memory nor on disk."""


class RecordError(InputError):
    """One image or its annotation is unusable."""


@contextmanager
def decoding(image_id: str, file: object = None) -> Iterator[None]:
    """Turn what damaged bytes raise inside the block into a RecordError that names the image.

    Args:
        image_id: The image.
        file: The table or file that holds its bytes.
    """
    try:
        yield
    except (OSError, SyntaxError) as error:  # Pillow raises both for damaged files
        raise RecordError(f"does not decode: {error}", file=file, field="image_id", value=image_id) from None


class TableError(InputError):
    """A stored table is unfinished, of another kind or version, or does not belong to its partner."""


class WeightsError(InputError):
    """A weight file is missing or does not fit the network."""


class CheckpointError(InputError):
    """A checkpoint is absent, unfinished, damaged, or of another network."""


class SettingError(InputError):
    """A setting is out of range, contradicts another one or would have no effect."""


class NonFiniteLossError(InputError):
    """The loss of a training step is not finite; names the records of the batch."""


class LostWorkError(InputError):
    """A unit of work ended its process in every try: it takes too much memory, or native code crashes on it."""
