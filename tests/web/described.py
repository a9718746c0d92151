"""Answers against the description of the API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from routemaster.errors import Invalid
from routemaster.validation import check_callback, split_user


def is_callback(value: object) -> bool:
    """The format `callback`, which says nothing about what is not a text."""
    if not isinstance(value, str):
        return True
    callback, _ = split_user(value)
    try:
        check_callback(callback)
    except Invalid:
        return False
    return True


FORMATS = FormatChecker(["date-time"])
FORMATS.checks("callback")(is_callback)


class Description:
    """A description of the API."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        paths = document["paths"]
        self._paths = [(re.compile(re.sub("{.+?}", "[^/]+", path)), item) for path, item in paths.items()]
        self._validators: dict[str, Draft202012Validator] = {}

    def complaints(self, name: str, value: object) -> list[str]:
        """What is wrong with a value of the schema with this name."""
        if name not in self._validators:
            schema = self._resolved({"$ref": f"#/components/schemas/{name}"})
            self._validators[name] = Draft202012Validator(schema, format_checker=FORMATS)
        validator = self._validators[name]
        wrong = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
        return wrong or [f"{path} is not described" for path in undescribed(value, [validator.schema])]

    def wrong_with(self, method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> list[str]:
        """What an answer is that it should not be; a request that is not described can have any answer."""
        found = [item for pattern, item in self._paths if pattern.fullmatch(path.partition("?")[0])]
        # a path without parameters comes before one with
        operation = next((item[method.lower()] for item in found if method.lower() in item), None)
        if operation is None:
            return []
        answer = self._follow(operation["responses"].get(str(status)))
        if answer is None:
            return [f"the status {status} is not described"]
        needed = answer.get("headers", ())
        wrong = [f"the header {name} is missing" for name in needed if name.lower() not in headers]
        for media_type, content in answer.get("content", {}).items():
            if headers.get("content-type", "").partition(";")[0] != media_type:
                wrong.append(f"the body is not {media_type}")
            elif media_type == "application/json" and path != "/openapi.json":
                wrong += self.complaints(content["schema"]["$ref"].rpartition("/")[2], json.loads(body))
        return wrong if answer.get("content") or not body else [*wrong, "a body is not described"]

    def _follow(self, node: Any) -> Any:
        while isinstance(node, dict) and "$ref" in node:
            target = self._document
            for name in node["$ref"].split("/")[1:]:
                target = target[name]
            node = target
        return node

    def _resolved(self, schema: Any) -> Any:
        """A schema with its references replaced, and ends of texts that Python's `$` does not mean."""
        schema = self._follow(schema)
        if isinstance(schema, list):
            return [self._resolved(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        made = {key: self._resolved(value) for key, value in schema.items()}
        if isinstance(made.get("pattern"), str) and made["pattern"].endswith("$"):
            made["pattern"] = made["pattern"][:-1] + r"\Z"
        return made


def undescribed(value: object, schemas: list[Any], path: str = "$") -> Iterator[str]:
    """The members of objects that none of the schemas describes, though one describes others."""
    whole = list(schemas)
    for schema in whole:
        whole += [each for kind in ("allOf", "anyOf", "oneOf") for each in schema.get(kind, ())]
    if isinstance(value, dict):
        known = [schema["properties"] for schema in whole if "properties" in schema]
        for name, member in value.items():
            inner = [properties[name] for properties in known if name in properties]
            if inner:
                yield from undescribed(member, inner, f"{path}.{name}")
            elif known:
                yield f"{path}.{name}"
    elif isinstance(value, list):
        inner = [schema["items"] for schema in whole if "items" in schema]
        for index, member in enumerate(value):
            yield from undescribed(member, inner, f"{path}[{index}]")
