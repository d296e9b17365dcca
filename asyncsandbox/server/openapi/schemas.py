"""JSON Schema in few words (dialect 2020-12, the one of OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = [
    "BASE64",
    "FLAG",
    "INTEGER",
    "NUMBER",
    "STRINGS",
    "TEXT",
    "TIME",
    "Schema",
    "array",
    "choice",
    "mapping",
    "nullable",
    "record",
    "reference",
    "with_note",
]

Schema = Mapping[str, Any]

TEXT: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
FLAG: Final[Schema] = {"type": "boolean"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
BASE64: Final[Schema] = {"type": "string", "contentEncoding": "base64"}


def array(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def mapping(values: Schema) -> Schema:
    """Return the schema of an object with any names."""
    return {"type": "object", "additionalProperties": values}


STRINGS: Final[Schema] = mapping(TEXT)


def choice(words: Sequence[str]) -> Schema:
    """Return the schema of one of some words."""
    return {"type": "string", "enum": list(words)}


def nullable(schema: Schema) -> Schema:
    """Return the same schema with null allowed."""
    if "enum" in schema:
        return {"type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object: what is always there, and what may be. Other names are allowed."""
    schema: dict[str, Any] = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        schema["required"] = list(required)
    return schema


def reference(name: str) -> Schema:
    """Return a reference to a schema that has a name in the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def with_note(schema: Schema, description: str) -> Schema:
    """Return the same schema with a sentence for people."""
    return {**schema, "description": description}
