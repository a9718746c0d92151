"""The JSON codec: valid JSON is decoded and encoded unchanged, everything else is rejected."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster import strict_json
from routemaster.errors import Invalid
from routemaster.json_compaction import TOKENS, Compact
from routemaster.strict_json import PAUSE, SHORT, SPARE, Number

#: name of a case -> an invalid body
REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \r\n\t ",
    "a word": b"hello",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16, little end first": '{"a":1}'.encode("utf-16-le"),
    "UTF-16, big end first": '{"a":1}'.encode("utf-16-be"),
    "UTF-16 with its mark": '{"a":1}'.encode("utf-16"),
    "UTF-16 of two marks": b"\xfe\xff" + '{"a":1}'.encode("utf-16"),
    "UTF-32, little end first": '{"a":1}'.encode("utf-32-le"),
    "UTF-32, big end first": '{"a":1}'.encode("utf-32-be"),
    "UTF-7": b"+AHsAfQ-",
    "a byte order mark behind white space": b" \xef\xbb\xbf{}",
    "a byte order mark at the end": b"{}\xef\xbb\xbf",
    "a character of five bytes": b'"\xf8\x88\x80\x80\x80"',
    "a byte of its own": b'"\x80"',
    "a pair of surrogates in UTF-8": b'"\xed\xa0\xbd\xed\xb8\x80"',
    "a form feed": b"{}\x0c",
    "a no-break space": "{}\u00a0".encode(),
    "a line separator": "{}\u2028".encode(),
    "a DEL behind the end": b"{}\x7f",
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "Latin-1": '"é"'.encode("latin-1"),
    "an overlong slash": b'"\xc0\xaf"',
    "an overlong NUL": b'"\xc0\x80"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "beyond Unicode": b'"\xf4\x90\x80\x80"',
    "half a character": b'"\xc3"',
    "a NUL": b'"\x00"',
    "a NUL after the end": b"{}\x00",
    "a line feed in a string": b'"a\nb"',
    "a tab in a string": b'"a\tb"',
    "an unknown escape": b'"\\x41"',
    "half an escape": b'"\\u12"',
    "an unfinished string": b'"abc',
    "single quotes": b"{'a':1}",
    "a bare key": b"{a:1}",
    "a number as key": b"{1:1}",
    "trailing junk": b"{} x",
    "a second value": b"{}{}",
    "a comma at the end of an array": b"[1,]",
    "a comma at the end of an object": b'{"a":1,}',
    "a comma alone": b"[,]",
    "an unclosed array": b"[1",
    "a bracket of the other kind": b"[1}",
    "a comment": b"{} // x",
    "True": b"True",
    "undefined": b"undefined",
    "NaN": b"NaN",
    "NaN within": b'{"a":[NaN]}',
    "Infinity": b"Infinity",
    "minus Infinity": b"[-Infinity]",
    "nan in small letters": b"nan",
    "1e999": b"1e999",
    "-1e999 within": b'{"a":-1e999}',
    "1.8e308": b"1.8e308",
    "a plus sign": b"+1",
    "a leading zero": b"01",
    "a leading dot": b".5",
    "a trailing dot": b"1.",
    "half an exponent": b"1e",
    "two signs": b"--1",
    "a sign alone": b"-",
    "a minus and Infinity": b"-Infinity",
    "an exponent of many digits": b"1e" + b"9" * 400,
    "a fraction with many digits before it": b"9" * 400 + b".0",
    "an octal number": b"0o7",
    "-00": b"-00",
    "hexadecimal": b"0x10",
    "an underscore": b"1_000",
    "full-width digits": "\uff11".encode(),
    "an integer of 5,000 digits": b"9" * 5000,
    "a negative integer of 5,000 digits": b"[-" + b"9" * 5000 + b"]",
    "a key twice": b'{"a":1,"a":1}',
    "a key twice, once escaped": b'{"a":1,"\\u0061":2}',
    "a key twice, deep inside": b'[{"b":{"a":1,"c":2,"a":3}}]',
    "an empty key twice": b'{"":1,"":2}',
    "33 arrays": b"[" * 33 + b"]" * 33,
    "33 objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "33 of both": b'[{"a":' * 16 + b"[]" + b"}]" * 16,
    "900 arrays": b"[" * 900 + b"]" * 900,
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 arrays that do not end": b"[" * 100_000,
}

#: valid bodies with their values
TAKEN: list[tuple[bytes, Any]] = [
    (b"null", None),
    (b" \t\r\n{ } \n", {}),
    (b"[]", []),
    (b"-0", Number("-0")),
    (b"-0.0", Number("-0.0")),
    (b"1E5", Number("1E5")),
    (b"1e-999", Number("1e-999")),
    (b"1.7976931348623157e308", Number("1.7976931348623157e308")),
    (b"9223372036854775808", 2**63),
    (b"9" * 4300, int("9" * 4300)),
    (b'"\\ud83d\\ude00"', "😀"),
    ('"😀 é \u2028"'.encode(), "😀 é \u2028"),
    (b'"\\u0000"', "\0"),
    (b'"\x7f"', "\x7f"),
    (b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}', {"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 1}]}),
    (b"[" * 32 + b"]" * 32, json.loads("[" * 32 + "]" * 32)),
    (b'{"a":' * 32 + b"1" + b"}" * 32, json.loads('{"a":' * 32 + "1" + "}" * 32)),
    (b'"' + b"[" * 1000 + b'"', "[" * 1000),
    (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children, max_size=5)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children, max_size=5),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down; a decoded Number equals the float that was encoded."""
    if isinstance(left, Number) and isinstance(right, float):
        left = float(left.text)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return bool(left == right)


class DecodeTests(SynchronousTestCase):
    """Decoding."""

    def test_refused(self) -> None:
        """Any text that two parsers could read differently is rejected with a one-line message."""
        for name, body in REFUSED.items():
            with self.subTest(name):
                sentence = str(self.assertRaises(Invalid, strict_json.decode, body))
                self.assertTrue(sentence.startswith("body is invalid: "), sentence)
                self.assertTrue(sentence.isprintable(), sentence)
                self.assertLess(len(sentence), 120)

    def test_taken(self) -> None:
        """A JSON text of RFC 8259 is decoded to its value."""
        for body, value in TAKEN:
            with self.subTest(body[:40]):
                self.assertTrue(same(strict_json.decode(body), value))

    def test_byte_order_mark(self) -> None:
        """A byte order mark is named in the error."""
        error = self.assertRaises(Invalid, strict_json.decode, b"\xef\xbb\xbf{}")
        self.assertIn("byte order mark", str(error))

    def test_depth_is_refused_quickly(self) -> None:
        """Rejecting a deeply nested body takes little time: a fraction of that for a flat one of its size."""

        def took(body: bytes) -> float:
            began = time.process_time()
            with contextlib.suppress(Invalid):
                strict_json.decode(body)
            return time.process_time() - began

        for body in (b"[" * 1_000_000, b'{"a":' * 200_000):
            flat = b"[" + b"1," * (len(body) // 2) + b"1]"
            self.assertLess(min(took(body) for _ in range(3)), max(took(flat) for _ in range(3)), body[:9])
        self.assertRaises(Invalid, strict_json.decode, b"[" * 900 + b"]" * 900)

    @given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
    def test_any_bytes(self, body: bytes) -> None:
        """Any bytes are decoded or raise `Invalid`, never another exception."""
        try:
            value = strict_json.decode(body)
        except Invalid:
            return
        self.assertTrue(same(strict_json.decode(body), value))


class CountTests(SynchronousTestCase):
    """Brackets and commas are counted before a text is decoded."""

    def test_more(self) -> None:
        """A text may have as many brackets and commas as the caller allows; with one more it is rejected."""
        for body in (b"[1,2,3]", b'{"a":[],"b":1}', b'"[{,,"'):
            allowed = sum(body.count(each) for each in (b"[", b"{", b","))
            strict_json.decode(body, allowed)
            error = self.assertRaises(Invalid, strict_json.decode, body, allowed - 1)
            self.assertIn("brackets and commas", str(error))

    def test_fields(self) -> None:
        """A body of fields has as many texts as fit, but few other values."""
        names = b",".join([b'"a"'] * 16_000)
        self.assertEqual(len(strict_json.decode_fields(b'{"topics":[%s]}' % names)["topics"]), 16_000)
        callback = b"https://a/" + b"[{,}]," * 169
        strict_json.decode_fields(b'{"topics":[%s],"callback":"%s"}' % (names, callback))
        for value in (b"[]", b"{}", b"1", b"-0", b"1.5", b"null"):
            body = b"[" + b",".join([value] * (SPARE + 1)) + b"]"
            self.assertRaises(Invalid, strict_json.decode_fields, body)


def values(steps: Iterator[Any]) -> list[Any]:
    """What was read in steps, all of it decoded."""
    return [plain(value) for value in steps if value is not PAUSE]


def plain(value: Any) -> Any:
    """A value without `Compact`."""
    if isinstance(value, Compact):
        return strict_json.decode(value.text)
    return {key: plain(member) for key, member in value.items()} if isinstance(value, dict) else value


def elements(body: bytes, most: int = 100) -> list[Any]:
    return values(strict_json.decode_array(body, most))


class EventTests(SynchronousTestCase):
    """`decode_event`."""

    def test_like_decode(self) -> None:
        """A text is accepted or rejected, and its value is the same, as if it was decoded at once."""
        for body, _ in TAKEN:
            for text in (body, b" \n" + body + b"\t", b'{"data":%s,"a":[1]}' % body):
                if text.count(b"[") + text.count(b"{") < 34:
                    found = values(strict_json.decode_event(text, 1 << 20))
                    self.assertTrue(same(found, [strict_json.decode(text)]), text[:40])
        for name, body in REFUSED.items():
            for text in (body, b'{"data":[%s]}' % (body if body.strip() else b",")):
                with self.subTest(name):
                    self.assertRaises(Invalid, list, strict_json.decode_event(text, 1 << 20))

    @given(JSON, st.integers(0, 3))
    def test_any_value(self, value: Any, indent: int) -> None:
        """Any value is the same as decoded at once."""
        body = json.dumps(value, indent=indent or None).encode()
        self.assertTrue(same(values(strict_json.decode_event(body, 1 << 20)), [strict_json.decode(body)]))

    def test_too_many_brackets(self) -> None:
        """A text with more brackets and commas than allowed is refused before it is read."""
        self.assertRaises(Invalid, next, strict_json.decode_event(b'{"a":[1,2]}', 2))
        self.assertEqual(len(values(strict_json.decode_event(b'{"a":[1,2]}', 3))), 1)

    def test_pauses(self) -> None:
        """A dense value of 1 MiB is read in hundreds of steps."""
        for dense in (b"[],", b"{},", b"1,", b'"",', b"1.5,", b'{"":[]},'):
            body = b'{"data":[%s0]}' % (dense * (1_000_000 // len(dense)))
            self.assertTrue(strict_json.is_dense(body))
            *pauses, value = strict_json.decode_event(body, 1 << 21)
            self.assertEqual((set(pauses), strict_json.encode(value["data"])), ({PAUSE}, body[8:-1]))
            self.assertGreaterEqual(len(pauses), 1_000_000 // len(dense) // TOKENS)
        self.assertFalse(strict_json.is_dense(b'{"data":[%s0]}' % (b"1," * 7000)))


class ArrayTests(SynchronousTestCase):
    """`decode_array`."""

    def test_like_decode(self) -> None:
        """An array is accepted or rejected, and its elements are the same, as if it was decoded at once."""
        shallow = [body for body, _ in TAKEN if body.count(b"[") + body.count(b"{") != 32]
        within = [b"[%s , %s]" % (body, body) for body in shallow]
        for body in (*within, b"[" * 32 + b"]" * 32, b"\t[\n]\r ", b"[1 ,\n2]", b"[[],{}]"):
            self.assertTrue(same(elements(body, 1 << 20), strict_json.decode(body)), body[:40])
        for name, body in REFUSED.items():
            inside = b"[" + (body if body.strip() else b",") + b"]"
            with self.subTest(name):
                self.assertRaises(Invalid, elements, inside)
        for text in ("[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1}", "[1]]", "[1]x", "[1],", "1", "{}"):
            self.assertRaises(Invalid, elements, text.encode())

    @given(st.lists(JSON, max_size=5), st.integers(0, 3))
    def test_any_array(self, values: list[Any], indent: int) -> None:
        """Any array is decoded to the same elements as at once."""
        body = json.dumps(values, indent=indent or None).encode()
        self.assertTrue(same(elements(body), strict_json.decode(body)))

    def test_long_elements(self) -> None:
        """An element may be longer than what is decoded at first, wherever it begins and whatever is around it."""
        for length in (*range(SHORT - 12, SHORT + 3), 3 * SHORT, 100_000):
            for element in (b'"%s"' % (b"x" * length), b"1" + b" " * length, b"[" + b" " * length + b"1]",
                            b"1." + b"1" * length, b'{"a":"%s"}' % ("\u20ac".encode() * length)):  # fmt: skip
                for body in (b"[%s]" % element, b"[1,%s , %s,2]" % (element, element)):
                    self.assertTrue(same(elements(body), strict_json.decode(body)), (length, element[:3]))
        self.assertRaises(Invalid, elements, b'["%s]' % (b"x" * 100_000))
        self.assertRaises(Invalid, elements, b"[" + b"1" * 100_000 + b"]")

    def test_too_many_brackets(self) -> None:
        """A long element with more brackets and commas than allowed is rejected, one with as many is accepted."""
        for value in (b"[]", b"{}", b"1", b"1.5", b"[[[]]]"):
            element = b"[" + b",".join([value] * 10_000) + b"]"
            count = sum(element.count(each) for each in (b"[", b"{", b","))
            body = b"[1,%s,%s]" % (element, element)
            self.assertTrue(same(elements(body, count), strict_json.decode(body)))
            self.assertRaises(Invalid, elements, body, count // 2)

    def test_lazy(self) -> None:
        """Of an array of many values, what follows an element is not decoded before the next one is asked for."""
        for rest in (b"," + b"[" * 1_000_000, b",{}" * 300_000):
            values = strict_json.decode_array(b"[{}" + rest, 5000)
            self.assertEqual(next(values), {})


class EncodeTests(SynchronousTestCase):
    """Encoding."""

    @given(JSON)
    def test_round_trip(self, value: Any) -> None:
        """A value that is decoded, encoded and decoded again has the same value and type."""
        sent = strict_json.decode(json.dumps(value).encode())
        self.assertTrue(same(sent, value))
        self.assertTrue(same(strict_json.decode(strict_json.encode(sent)), value))

    def test_numbers_keep_their_form(self) -> None:
        """Numbers are encoded in the digits in which they were written, at any depth."""
        for text in ("1.10", "12345678901234567.123456789", "1E5", "-0", "-0.0", "1e-7", "0.1",
                     '{"a":[1.50,{"b":-0,"c":"1.0"},[2E+3]],"d":[],"e":{}}'):  # fmt: skip
            self.assertEqual(strict_json.encode(strict_json.decode(text.encode())).decode(), text)

    def test_compact(self) -> None:
        """The text is compact JSON in UTF-8."""
        self.assertEqual(strict_json.encode({"a": [1, 2.5, None, True], "é": "\"\n"}),
                         '{"a":[1,2.5,null,true],"é":"\\"\\n"}'.encode())  # fmt: skip

    def test_half_a_surrogate_pair(self) -> None:
        """Encoding rejects half a surrogate pair in a string or a key."""
        for body in (rb'"\ud800"', rb'["\udc00\ud800"]', rb'{"\ud83d":1}', rb'{"a":[{"b":"x\udfff"}]}'):
            self.assertRaises(Invalid, strict_json.encode, strict_json.decode(body))
