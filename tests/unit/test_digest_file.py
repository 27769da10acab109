"""What a reader notices about the digest of one file."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.agents.digest.digest import Digest, digest_bytes

GUIDE = """# Growing tomatoes

Tomatoes need warm soil, steady water and six hours of sun. See [the calendar](cal.md) for dates.

## Watering

Water the soil and never the leaves, because wet leaves invite late blight. Late blight spreads within days in warm
and wet weather. A drip hose keeps the soil evenly moist while the leaves stay dry.

```sh
# Not a heading
echo "Water the code block every single morning without fail."
```

Pruning
-------

- Remove side shoots weekly so that the plant puts its strength into fruit.
- Late blight also enters through torn stems, so cut side shoots with a clean knife.
"""

MODULE = '''"""Keep the leases of running tasks alive."""

import os
from collections import Counter
from . import clock


class LeaseKeeper:
    """Extend every lease once a second, from a thread of its own."""

    def extend_lease(self, lease_deadline: float) -> None:
        # A lease that is not extended within four seconds is given to another worker.
        self.lease_deadline = lease_deadline


async def drain_grace() -> None:
    pass
'''


def test_the_same_bytes_always_give_the_same_digest() -> None:
    assert digest_bytes("guide.md", GUIDE.encode()) == digest_bytes("guide.md", GUIDE.encode())


def test_a_digest_survives_its_trip_as_json() -> None:
    digest = digest_bytes("lease.py", MODULE.encode())
    assert msgspec.json.decode(msgspec.json.encode(digest), type=Digest) == digest


def test_headings_of_markdown_are_found_and_those_in_code_are_not() -> None:
    headings = digest_bytes("guide.md", GUIDE.encode()).headings
    assert [(h.text, h.level, h.line) for h in headings] == [
        ("Growing tomatoes", 1, 1),
        ("Watering", 2, 5),
        ("Pruning", 2, 15),
    ]


def test_telling_sentences_are_quoted_from_the_text_with_their_line() -> None:
    lines = GUIDE.split("\n")
    flat = " ".join(GUIDE.split())
    sentences = digest_bytes("guide.md", GUIDE.encode()).sentences
    assert 1 <= len(sentences) <= 3
    for sentence in sentences:
        assert sentence.text in flat
        assert sentence.text.split()[0] in lines[sentence.line - 1]
        assert "code block" not in sentence.text


def test_a_text_says_what_it_is_about() -> None:
    phrases = [phrase.text for phrase in digest_bytes("guide.md", GUIDE.encode()).phrases]
    assert "late blight" in phrases
    assert any("side shoots" in phrase for phrase in phrases)
    assert not {"the", "and", "because"} & set(phrases)


def test_python_is_read_by_its_syntax_tree() -> None:
    digest = digest_bytes("lease.py", MODULE.encode())
    assert [(s.kind, s.name) for s in digest.symbols] == [
        ("class", "LeaseKeeper"),
        ("method", "LeaseKeeper.extend_lease"),
        ("function", "drain_grace"),
    ]
    assert digest.imports == [".clock", "collections.Counter", "os"]
    assert "lease deadline" in [phrase.text for phrase in digest.phrases]
    assert any("four seconds" in sentence.text for sentence in digest.sentences)
    assert (digest.lines.comment, digest.lines.total) == (1, 17)


def test_python_that_does_not_parse_is_still_read_and_says_so() -> None:
    digest = digest_bytes("old.py", b"def hello():\n    print 'hi'\n")
    assert [s.name for s in digest.symbols] == ["hello"]
    assert any("parse" in note for note in digest.notes)


@pytest.mark.parametrize(
    ("path", "data", "language"),
    [
        ("a.rs", b"fn main() {}\n", "Rust"),
        ("Makefile", b"all:\n\ttrue\n", "Makefile"),
        ("run", b"#!/usr/bin/env python3\nprint(1)\n", "Python"),
        ("run", b"#!/bin/sh\ntrue\n", "Shell"),
        ("deep/Dockerfile.dev", b"FROM x\n", "Dockerfile"),
        ("LICENSE", b"Do as you like.\n", "Plain text"),
        ("a.bin", b"\x89PNG\r\n\x1a\n\0\0", "PNG image"),
    ],
)
def test_the_language_is_told_by_name_suffix_first_line_or_magic(path: str, data: bytes, language: str) -> None:
    assert digest_bytes(path, data).language == language


@pytest.mark.parametrize(
    ("path", "text", "names"),
    [
        ("a.go", "package a\n\nfunc (s *Server) Close() error {\n}\n\ntype Server struct {\n}\n", ["Close", "Server"]),
        ("a.ts", "export class Box {}\nexport const open = async (x) => 1\n", ["Box", "open"]),
        ("a.rs", "pub struct Lease;\npub(crate) async fn extend() {}\n", ["Lease", "extend"]),
        ("a.sql", "CREATE TABLE IF NOT EXISTS task (id int);\n", ["task"]),
        ("a.sh", "# f() {\nstop() {\n}\n", ["stop"]),
    ],
)
def test_symbols_of_other_languages_are_found_by_pattern(path: str, text: str, names: list[str]) -> None:
    assert [symbol.name for symbol in digest_bytes(path, text.encode()).symbols] == names


def test_an_empty_file_is_empty_and_not_binary() -> None:
    digest = digest_bytes("py.typed", b"")
    assert (digest.kind, digest.lines.total, digest.signature) == ("empty", 0, [])


def test_latin_1_is_read_and_said_so() -> None:
    digest = digest_bytes("brief.txt", "Grüße aus Köln, und schöne Straßen überall.".encode("latin-1"))
    assert digest.kind == "prose"
    assert digest.encoding == "latin-1"
    assert any("latin-1" in note for note in digest.notes)


def test_utf_16_with_its_mark_is_text() -> None:
    assert digest_bytes("a.txt", "Hello there, world.".encode("utf-16")).words == 3


def test_compressed_data_is_binary_and_has_no_words() -> None:
    digest = digest_bytes("a.txt", bytes(range(256)) * 20)
    assert (digest.kind, digest.words, digest.phrases) == ("binary", 0, [])


def test_a_minified_file_is_noted() -> None:
    digest = digest_bytes("a.min.js", b"var a=[1,2,3];function b(){return((((" * 30_000)
    assert any("longest line" in note for note in digest.notes)


@pytest.mark.parametrize(
    ("name", "piece"), [("big.md", GUIDE.encode()), ("a.min.js", b"var a=[1,2,3];function b(){return((((")]
)
def test_the_work_grows_with_the_size_and_not_with_its_square(name: str, piece: bytes) -> None:
    small = _cpu_s(name, piece * (250_000 // len(piece)))
    large = _cpu_s(name, piece * (5_000_000 // len(piece)))
    # twenty times the bytes; a square would be four hundred times the work
    assert large < 100 * small


def _cpu_s(name: str, data: bytes) -> float:
    begin_s = time.process_time()
    digest = digest_bytes(name, data)
    assert digest.lines.total in {data.count(b"\n"), data.count(b"\n") + 1}
    return time.process_time() - begin_s


@settings(max_examples=150)
@given(
    data=st.binary(max_size=4_000),
    suffix=st.sampled_from(["py", "md", "rst", "txt", "js", "json", "html", "c", "lua", ""]),
)
def test_no_bytes_make_it_fail(data: bytes, suffix: str) -> None:
    msgspec.json.encode(digest_bytes(f"x.{suffix}", data))


@settings(max_examples=150)
@given(
    text=st.text(max_size=2_000), suffix=st.sampled_from(["py", "md", "rst", "txt", "ts", "html", "sql", "toml", "tex"])
)
def test_no_text_makes_it_fail(text: str, suffix: str) -> None:
    msgspec.json.encode(digest_bytes(f"x.{suffix}", text.encode("utf-8", "surrogatepass")))


def test_python_nested_beyond_the_recursion_limit_does_not_fail() -> None:
    for hostile in (b"(" * 5_000, b"x = " + b"-" * 20_000 + b"1", b"a." * 20_000 + b"b", b"x = '\\d'\n"):
        assert digest_bytes("deep.py", hostile).language == "Python"
