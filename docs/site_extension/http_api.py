"""`.. http-api::`: all requests and the forms of their bodies, from the OpenAPI document that the bus serves."""

from __future__ import annotations

import inspect
from typing import Any
from unittest.mock import Mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from routemaster.config import load
from routemaster.web import openapi
from routemaster.web.api import Api
from site_extension.elements import literal, paragraph, section, table, text

METHODS = ("get", "put", "post", "delete")
SCHEMA = "#/components/schemas/"
#: what a schema may say of a value, in words
LIMITS = {
    "minimum": "at least {}", "maximum": "at most {}", "minLength": "at least {} characters",
    "maxLength": "at most {} characters", "minItems": "at least {} elements", "maxItems": "at most {} elements",
    "pattern": "as {}", "const": "{}", "default": "default {}", "format": "{}",
}  # fmt: skip


def described() -> dict[str, Any]:
    """The document, with the limits that are the defaults."""
    config = load({}, {}, None)
    parts = [Mock() for each in inspect.signature(Api).parameters.values() if each.default is each.empty]
    routes = [(path, method, who) for path, method, _, who in Api(*parts)._table()]
    limits = {name: getattr(config, name) for name in ("max_event_data", "max_body", "missing_topics")}
    return openapi.document(routes, **limits)


class HttpApi(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        self._document = described()
        groups: dict[str, list[nodes.Node]] = {}
        for path, item in self._document["paths"].items():
            for method in METHODS:
                if method in item:
                    operation = item[method]
                    groups.setdefault(operation["tags"][0], []).append(self._operation(method, path, operation))
        schemas = self._document["components"]["schemas"]
        bodies = [self._schema(name, schema) for name, schema in sorted(schemas.items())]
        return [
            *(section(f"Requests about {name}" if name != "monitoring" else "Monitoring requests", *content)
              for name, content in sorted(groups.items())),
            section("Errors of any request", self._answers(self._document["components"]["responses"])),
            section("Bodies", *bodies),
        ]  # fmt: skip

    def _operation(self, method: str, path: str, operation: dict[str, Any]) -> nodes.section:
        who = [name for each in operation["security"] for name in each]
        content: list[nodes.Node] = [paragraph(text(operation["summary"]))]
        content.append(paragraph(text(f"Who: {', '.join(who) or 'anybody'}.")))
        if "requestBody" in operation:
            schema = next(iter(operation["requestBody"]["content"].values()))["schema"]
            content.append(paragraph(text("Body: "), self._type(schema), text(".")))
        if operation.get("parameters"):
            rows = [
                [literal(each["name"]), text(each["in"]), self._type(each["schema"])]
                for each in operation["parameters"]
            ]
            content.append(table(["parameter", "in", "value"], [20, 10, 70], rows))
        own = {status: answer for status, answer in operation["responses"].items() if "$ref" not in answer}
        if own:
            content.append(self._answers(own))
        return section(f"{method.upper()} {path}", *content, name=operation["operationId"])

    def _answers(self, answers: dict[str, Any]) -> nodes.table:
        rows = []
        for status, answer in answers.items():
            body = [
                node for content in answer.get("content", {}).values() for node in self._type(content["schema"])
            ]
            rows.append([literal(status), text(answer["description"]), body])
        return table(["answer", "meaning", "body"], [10, 60, 30], rows)

    def _schema(self, name: str, schema: dict[str, Any]) -> nodes.section:
        content: list[nodes.Node] = []
        if "description" in schema:
            content.append(paragraph(text(schema["description"])))
        fields = schema.get("properties", {})
        if fields:
            required = schema.get("required", [])
            rows = [[literal(field), text("yes" if field in required else "no"), self._type(value, described=True)]
                    for field, value in fields.items()]  # fmt: skip
            content.append(table(["field", "required", "value"], [20, 10, 70], rows))
        else:
            content.append(paragraph(self._type(schema)))
        return section(name, *content, name=f"body {name}")

    def _type(self, schema: dict[str, Any], described: bool = False) -> list[nodes.Node]:
        """A schema in words; one with a name as a link to it."""
        if "$ref" in schema:
            name = schema["$ref"].removeprefix(SCHEMA)
            return [
                nodes.reference(
                    "", "", nodes.literal("", name), refid=nodes.make_id(f"body {name}"), internal=True
                )
            ]
        for word, joint in (("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")):
            if word in schema and not any("required" in each and len(each) == 1 for each in schema[word]):
                return _joined([self._type(each, described) for each in schema[word]], joint)
        kind = schema.get("type", "any JSON" if not schema.get("enum") else "")
        kinds = kind if isinstance(kind, list) else [kind]
        made = text(" or ".join(kinds))
        if "enum" in schema:
            made += [*text(" " if made else ""), *_joined([literal(str(each)) for each in schema["enum"]], ", ")]
        if "array" in kinds and schema.get("items"):
            made += [*text(" of "), *self._type(schema["items"])]
        said = [literal(form.format(schema[name])) for name, form in LIMITS.items() if name in schema]
        made += [node for each in said for node in (*text(", "), *each)]
        if described and "description" in schema:
            made += [*text(": " if made else ""), *text(schema["description"])]
        return made


def _joined(parts: list[list[nodes.Node]], joint: str) -> list[nodes.Node]:
    return [node for number, part in enumerate(parts) for node in (*(text(joint) if number else []), *part)]


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("http-api", HttpApi)
