"""Values that are compacted in steps are as those that are decoded and encoded."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster import json_compaction, strict_json
from routemaster.errors import Invalid
from routemaster.json_compaction import MEMBERS, TOKENS, Compact, Compaction, members
from tests.test_strict_json import JSON, REFUSED, TAKEN

MOST = 1 << 22


def compacted(text: str, most: int = MOST) -> bytes | None:
    """A whole text as compact JSON; None if it is refused."""
    text = text.strip(" \t\r\n")
    compaction = Compaction(text, 0, most)
    try:
        for _ in compaction.steps():
            pass
    except Invalid:
        return None
    return compaction.value.text if compaction.end == len(text) else None


def decoded(text: str) -> bytes | None:
    """The same by decoding and encoding."""
    try:
        return strict_json.encode(strict_json.decode(text.encode("utf-8", "surrogatepass")))
    except Invalid:
        return None


class CompactionTests(SynchronousTestCase):
    """`Compaction`."""

    def test_taken(self) -> None:
        """What is decoded is compacted to what would be encoded, alone and within."""
        for body, _ in TAKEN:
            for text in (body.decode(), f' [ {body.decode()} , {{ "a" : {body.decode()} }} ]'):
                self.assertEqual(compacted(text), decoded(text), text[:40])

    def test_refused(self) -> None:
        """What is not decoded is not compacted."""
        for name, body in REFUSED.items():
            try:
                text = body.decode()
            except UnicodeDecodeError:
                continue
            for each in (text, f"[{text or ','}]", f'{{"a":{text}}}', f"{{{text}:1}}", f"[[],{text}"):
                if decoded(each) is None:
                    self.assertIsNone(compacted(each), name)

    @given(JSON, st.integers(0, 3), st.booleans())
    def test_any_value(self, value: Any, indent: int, escapes: bool) -> None:
        """Any JSON, however it is written."""
        text = json.dumps(value, indent=indent or None, ensure_ascii=escapes)
        self.assertEqual(compacted(text), decoded(text))

    @given(st.text(st.sampled_from('{}[]:,"\\ud801efalsn0+-.tru \n\x00\u20ac'), max_size=30))
    @example('{"a":1,"\\u0061":2}')
    @example("[1,]")
    @example('["\\ud83d","\\ude00"]')
    def test_any_text(self, text: str) -> None:
        """Any text of JSON's characters is compacted if and only if it is decoded, to the same."""
        self.assertEqual(compacted(text), decoded(text))

    def test_long_integers(self) -> None:
        """An integer has as many digits as Python converts."""
        for text in ("9" * 4300, "-" + "9" * 4300, "9" * 4301, "[" + "1" * 4301 + "]"):
            self.assertEqual(compacted(text), decoded(text))

    def test_most(self) -> None:
        """Brackets and commas are counted, those in strings are not."""
        for text, count in (("[1,2,3]", 3), ('{"a":[],"b":"[{,,,,,"}', 3), ("[[[]],[]]", 5), ('"[,{"', 0)):
            self.assertEqual(compacted(text, count), text.encode())
            self.assertEqual(compacted(text, count - 1) is None, count > 0)

    def test_steps(self) -> None:
        """A step reads a few thousand values, whatever they are, and no text twice."""
        for dense in ("[]", "{}", "1", '""', "1.5", '{"":[]}', "[" * 20 + "]" * 20, '"\\n"'):
            text = "[" + ",".join([dense] * 30_000) + "]"
            compaction, reads = Compaction(text, 0, MOST), 0
            read = Compaction._read_value

            def counted(self: Compaction, pieces: list[str], read: Any = read) -> bool:
                nonlocal reads
                reads += 1
                return bool(read(self, pieces))

            with patch.object(json_compaction.Compaction, "_read_value", counted):
                before, ends = 0, [0]
                for _ in compaction.steps():
                    self.assertLessEqual(reads - before, TOKENS)
                    self.assertGreater(compaction.end, ends[-1])
                    ends.append(compaction.end)
                    before = reads
            self.assertGreaterEqual(len(ends), 30_000 // TOKENS)
            self.assertEqual(compaction.value.text, text.encode())


class MembersTests(SynchronousTestCase):
    """`members`."""

    def read(self, text: str, most: int = MOST, depth: int = 32) -> tuple[dict[str, bytes], int]:
        reading = members(text, 0, most, depth)
        while True:
            try:
                next(reading)
            except StopIteration as read:
                found, end = read.value
                return {key: value.text for key, value in found.items()}, end

    def test_members(self) -> None:
        """Each member by itself, and the place behind the object."""
        text = '{ "a" : [ 1 ] , "\\u0062":"\\u00e9","c":{}} x'
        self.assertEqual(self.read(text), ({"a": b"[1]", "b": '"\u00e9"'.encode(), "c": b"{}"}, len(text) - 2))
        self.assertEqual(self.read("{ }"), ({}, 3))

    def test_refused(self) -> None:
        """Equal keys, more members than can be looked at, and what is not JSON."""
        for text in ('{"a":1,"\\u0061":2}', "{", '{"a"', '{"a":1', '{"a":1,}', '{"a" 1}', "{1:1}", '{"a":1]'):
            self.assertRaises(Invalid, self.read, text)
        many = "{" + ",".join(f'"{number}":1' for number in range(MEMBERS)) + "}"
        self.assertEqual(len(self.read(many)[0]), MEMBERS)
        self.assertRaises(Invalid, self.read, many[:-1] + ',"x":1}')

    def test_depth(self) -> None:
        """The object counts as one of the nested ones."""
        self.read('{"a":[[]]}', depth=3)
        self.assertRaises(Invalid, self.read, '{"a":[[]]}', depth=2)

    def test_shown(self) -> None:
        """A compact value is shown as its text."""
        self.assertEqual(repr(Compact(b'[1,"a"]')), '[1,"a"]')
