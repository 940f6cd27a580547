"""How a record becomes a prompt: templates with {field}s, shots before the question, another template for chat."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.errors import UserError
from experiments.tasks.files import Record
from viasd.spec import spec

Shot = int | dict[str, Any]


@spec
class Form:
    """The texts around a record's fields.

    `prompt` ends where the answer begins and `answer` is what follows it in a shot, both templates (`fill`). `shots`
    come first, each followed by `separator`: records, or indices of records in the split that the source takes shots
    from. `preamble` comes before them. A chat model is asked `chat_prompt` as one message of a user, without preamble
    and shots; None: all of the same text.
    """

    prompt: str
    answer: str = ""
    preamble: str = ""
    shots: tuple[Shot, ...] = ()
    separator: str = "\n\n"
    chat_prompt: str | None = None


def lookup(record: Any, path: str) -> Any:
    """A value in a record by its field's name, names and list positions inside it after dots: `answers.text.0`.

    Raises:
        UserError: no such field; the message names those there are.
    """
    value = record
    for part in [path] if isinstance(record, Mapping) and path in record else path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UserError(f"field {path!r} is not in the data; accepted: {', '.join(names(record))}")
    return value


def names(record: Any, inside: str = "") -> list[str]:
    """The fields of a record, those of objects inside it by their dotted names."""
    if not isinstance(record, Mapping):
        return [inside.rstrip(".")]
    return [name for key, value in record.items() for name in names(value, f"{inside}{key}.")]


class _Filler(string.Formatter):
    """`str.format` with fields as `lookup` finds them, so that nothing of an object but its data can be named."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return lookup(kwargs, field_name), field_name

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "l":
            return chr(ord("A") + int(value))
        if conversion == "f":
            return value[0] if value else ""
        if conversion == "j":
            return "\n".join(map(str, value))
        return super().convert_field(value, conversion)  # type: ignore[arg-type]


def fill(template: str, record: Record) -> str:
    """A template with a record's fields in place of `{field}`; `{{` is a brace.

    `{field!l}` is the letter of a choice's number (0 is A), `{field!j}` a list joined by line breaks, `{field!f}` the
    first of a list, nothing of an empty one.

    Raises:
        UserError: a field that the record lacks, or a template that cannot be read.
    """
    try:
        return _Filler().vformat(template, (), record)
    except UserError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"template {template!r}: {error}; accepted: {{field}}, with {{{{ and }}}} for braces of the text itself"
        ) from error


def ask(form: Form, record: Record, shots: Sequence[Record]) -> str:
    """The whole prompt of a record."""
    told = [fill(form.prompt, shot) + fill(form.answer, shot) + form.separator for shot in shots]
    return "".join([form.preamble, *told, fill(form.prompt, record)])
