"""What a source file defines and imports: Python by its syntax tree, other languages by one pattern a line."""

from __future__ import annotations

import ast
import io
import re
import threading
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from callboard.agents.digest.language import Language
from callboard.agents.digest.text import Sentence, sentences_of


class Symbol(msgspec.Struct, frozen=True, kw_only=True):
    """Something a file defines: kind (class, function, method, type, ...), qualified name, line counted from 1."""

    kind: str
    name: str
    line: int


class Source(NamedTuple):
    """What is known of a source file besides its lines.

    Attributes:
        symbols: At most 500, in order.
        imports: Python: dotted names, relative ones with their leading dots, sorted, without repeats.
        prose: Sentences of docstrings and comments.
        is_parsed: False when a Python file could not be parsed and was read by patterns.
    """

    symbols: list[Symbol]
    imports: list[str]
    prose: list[Sentence]
    is_parsed: bool = True


_MAX_SYMBOLS: Final = 500
_MAX_LINE_CHARS: Final = 300  # longer lines are made by machines
_MAX_PARSE_CHARS: Final = 1_000_000  # the tree of a larger file takes seconds and hundreds of MB
_LOCK = threading.Lock()
_MARKS: Final = "#/*!-;%<>{} \t"


def _p(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_C_LIKE: Final = (
    ("type", _p(r"\s*(?:typedef\s+)?(?:struct|enum|union|class|namespace)\s+(\w+)[^;()]*\{?\s*$")),
    ("macro", _p(r"\s*#\s*define\s+(\w+)")),
    ("function", _p(r"(?!return\b|else\b)(?:[\w:<>*&,~]+\s+){1,6}[*&]?([\w:~]+)\s*\([^;]*$")),
)
_JVM: Final = (
    ("type", _p(r"\s*(?:[a-z]+\s+){0,4}(?:class|interface|enum|record|object|trait|struct)\s+(\w+)")),
    ("function", _p(r"\s*(?:[a-z]+\s+){0,4}(?:fun|func|def)\s+(\w+)")),
    ("method", _p(r"\s*(?:public|private|protected|internal)\s+(?:[\w<>\[\],?.]+\s+){1,4}(\w+)\s*\(")),
)
_SCRIPT: Final = (
    ("class", _p(r"\s*(?:export\s+)?(?:default\s+)?(?:abstract\s+)?class\s+(\w+)")),
    ("function", _p(r"\s*(?:export\s+)?(?:default\s+)?(?:async\s+)?function\s*\*?\s*(\w+)")),
    ("type", _p(r"\s*(?:export\s+)?(?:declare\s+)?(?:interface|type|enum)\s+(\w+)")),
    ("function", _p(r"\s*(?:export\s+)?(?:const|let|var)\s+(\w+)\s*=\s*(?:async\s*)?(?:\([^)]*\)|\w+)\s*=>")),
)
_PYTHON: Final = (("class", _p(r"\s*class\s+(\w+)")), ("function", _p(r"\s*(?:async\s+)?def\s+(\w+)")))
_PATTERNS: Final[Mapping[str, tuple[tuple[str, re.Pattern[str]], ...]]] = {
    "Python": _PYTHON,
    "JavaScript": _SCRIPT,
    "TypeScript": _SCRIPT,
    "Go": (("type", _p(r"type\s+(\w+)\s")), ("function", _p(r"func\s+(?:\([^)]*\)\s*)?(\w+)"))),
    "Rust": (
        ("type", _p(r"\s*(?:pub(?:\([^)]*\))?\s+)?(?:struct|enum|trait|union|type|mod)\s+(\w+)")),
        ("function", _p(r"\s*(?:pub(?:\([^)]*\))?\s+)?(?:async\s+|const\s+|unsafe\s+)*fn\s+(\w+)")),
        ("macro", _p(r"\s*macro_rules!\s+(\w+)")),
    ),
    "C": _C_LIKE, "C++": _C_LIKE, "Java": _JVM, "Kotlin": _JVM, "C#": _JVM, "Swift": _JVM, "Scala": _JVM,
    "PHP": (("class", _p(r"\s*(?:abstract\s+|final\s+)?(?:class|interface|trait|enum)\s+(\w+)")),
            ("function", _p(r"\s*(?:[a-z]+\s+){0,3}function\s+&?(\w+)"))),
    "Ruby": (("class", _p(r"\s*(?:class|module)\s+([\w:]+)")), ("method", _p(r"\s*def\s+([\w.?!=]+)"))),
    "Perl": (("function", _p(r"\s*sub\s+(\w+)")), ("package", _p(r"\s*package\s+([\w:]+)"))),
    "Lua": (("function", _p(r"\s*(?:local\s+)?function\s+([\w.:]+)")),),
    "R": (("function", _p(r"\s*([\w.]+)\s*(?:<-|=)\s*function\b")),),
    "Shell": (
        ("function", _p(r"\s*(?:function\s+)?([\w.-]+)\s*\(\)\s*\{?")),
        ("function", _p(r"\s*function\s+([\w.-]+)")),
    ),
    "PowerShell": (("function", _p(r"\s*function\s+([\w-]+)")),),
    "SQL": (
        ("table", _p(r"(?i)\s*create\s+(?:temp\w*\s+)?table\s+(?:if\s+not\s+exists\s+)?([\w.\"`]+)")),
        ("view", _p(r"(?i)\s*create\s+(?:or\s+replace\s+)?(?:materialized\s+)?view\s+([\w.\"`]+)")),
        ("index", _p(r"(?i)\s*create\s+(?:unique\s+)?index\s+(?:if\s+not\s+exists\s+)?([\w.\"`]+)")),
        ("function", _p(r"(?i)\s*create\s+(?:or\s+replace\s+)?(?:function|procedure|trigger)\s+([\w.\"`]+)")),
    ),
    "Elixir": (("module", _p(r"\s*defmodule\s+([\w.]+)")), ("function", _p(r"\s*defp?\s+([\w?!]+)"))),
    "Haskell": (("type", _p(r"(?:data|newtype|class|type)\s+(\w+)")), ("function", _p(r"([a-z]\w*)\s+::"))),
    "Protocol Buffers": (("type", _p(r"\s*(?:message|enum|service)\s+(\w+)")), ("method", _p(r"\s*rpc\s+(\w+)"))),
    "Terraform": (
        ("block", _p(r"((?:resource|module|variable|output|data|provider)\s+\"[\w-]+\"(?:\s+\"[\w-]+\")?)")),
    ),
    "Makefile": (("target", _p(r"([\w./%-]+)\s*::?(?!=)")),),
    "Dockerfile": (("stage", _p(r"(?i)FROM\s+(\S+)")),),
}  # fmt: skip


def source_of(text: str, lines: list[str], language: Language) -> Source:
    """Read a source file. Never raises: what cannot be parsed is read by patterns."""
    if language.name == "Python" and len(text) <= _MAX_PARSE_CHARS:
        tree = _parse(text)
        if tree is not None:
            return _python_source(tree, text)
    prose = list(_comment_prose(lines, language))
    return Source(list(_by_pattern(lines, language)), [], prose, is_parsed=language.name != "Python")


def _parse(text: str) -> ast.Module | None:
    # catch_warnings swaps process-wide state: two threads restoring in the wrong order would leave it swapped.
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _python_source(tree: ast.Module, text: str) -> Source:
    symbols: list[Symbol] = []
    prose: list[Sentence] = []
    imports: set[str] = set()
    stack: list[tuple[ast.AST, str, bool]] = [(tree, "", False)]
    # An own stack: nested code deeper than the recursion limit must not fail the file.
    while stack:
        node, prefix, in_class = stack.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            is_class = isinstance(node, ast.ClassDef)
            kind = "class" if is_class else "method" if in_class else "function"
            symbols.append(Symbol(kind=kind, name=prefix + node.name, line=node.lineno))
            prefix, in_class = f"{prefix}{node.name}.", is_class
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            prose.extend(_docstring(node))
        elif isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.update(_from_names(node))
        if not isinstance(node, ast.expr):
            stack.extend((child, prefix, in_class) for child in reversed(list(ast.iter_child_nodes(node))))
    symbols.sort(key=lambda symbol: symbol.line)
    prose.extend(_python_comments(text))
    prose.sort(key=lambda sentence: sentence.line)
    return Source(symbols[:_MAX_SYMBOLS], sorted(imports), prose)


def _from_names(node: ast.ImportFrom) -> Iterator[str]:
    base = "." * node.level + (node.module or "")
    # ``from a import b`` may name the module a.b or a thing in a; whoever knows all modules decides.
    for alias in node.names:
        joint = "" if not base or base.endswith(".") else "."
        yield base if alias.name == "*" else f"{base}{joint}{alias.name}"


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Sentence]:
    body = node.body[0] if node.body else None
    if isinstance(body, ast.Expr) and isinstance(body.value, ast.Constant) and isinstance(body.value.value, str):
        yield from _paragraphs(body.value.value.replace("\r", "\n").split("\n"), body.lineno)


def _python_comments(text: str) -> Iterator[Sentence]:
    block: list[str] = []
    begin = last = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT:
                continue
            if token.start[0] != last + 1 and block:
                yield from _paragraphs(block, begin)
                block = []
            begin, last = (begin if block else token.start[0]), token.start[0]
            block.append(token.string.lstrip("#!: "))
    except (tokenize.TokenError, SyntaxError, IndentationError):
        pass  # the tree parsed, so only what follows the odd token is missed
    yield from _paragraphs(block, begin)


def _paragraphs(lines: list[str], begin: int) -> Iterator[Sentence]:
    paragraph: list[str] = []
    first = begin
    for number, line in enumerate([*lines, ""], start=begin):
        is_break = not line.strip() or line.lstrip().startswith((">>>", "...", "|", ".. ", "+-", ":", "@", "- ", "* "))
        if is_break:
            yield from sentences_of("\n".join(paragraph), first)
            paragraph = []
        else:
            first = first if paragraph else number
            paragraph.append(line)


def _comment_prose(lines: list[str], language: Language) -> Iterator[Sentence]:
    block: list[str] = []
    begin, closing = 1, ""
    for number, line in enumerate([*lines, ""], start=1):
        stripped = line.strip()
        opened = next((pair for pair in language.block_comments if stripped.startswith(pair[0])), None)
        if closing or opened or (language.line_comments and stripped.startswith(language.line_comments)):
            begin = begin if block else number
            closing = closing or (opened[1] if opened else "")
            body = stripped.partition(closing)[0] if closing and not opened else stripped
            block.append(body.strip(_MARKS))
            closing = "" if closing and closing in stripped[2 if opened else 0 :] else closing
        elif block:
            yield from _paragraphs(block, begin)
            block = []


def _by_pattern(lines: list[str], language: Language) -> Iterator[Symbol]:
    patterns = _PATTERNS.get(language.name, ())
    found = 0
    for number, line in enumerate(lines, start=1):
        if not patterns or found == _MAX_SYMBOLS:
            return
        if len(line) > _MAX_LINE_CHARS or line.lstrip().startswith(language.line_comments or ("\0",)):
            continue
        for kind, pattern in patterns:
            if match := pattern.match(line):
                yield Symbol(kind=kind, name=match[1].strip('"`'), line=number)
                found += 1
                break
