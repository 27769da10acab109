"""Which language a file is written in: by name, by suffix, by first line; and what a binary file is by its magic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final, Literal, NamedTuple

Kind = Literal["prose", "code", "data", "binary"]


class Language(NamedTuple):
    """A language and how its comments look.

    Attributes:
        name: As a person writes it.
        kind: ``prose`` is read sentence by sentence, ``code`` by symbols and comments, ``data`` by neither.
        line_comments: What begins a comment that ends with the line.
        block_comments: Opening and closing pairs of comments that may span lines.
    """

    name: str
    kind: Kind
    line_comments: tuple[str, ...] = ()
    block_comments: tuple[tuple[str, str], ...] = ()


_C_BLOCK: Final = (("/*", "*/"),)
_XML_BLOCK: Final = (("<!--", "-->"),)

PLAIN: Final = Language("Plain text", "prose")
BINARY: Final = Language("Binary", "binary")

_TABLE: Final[tuple[tuple[str, Kind, str, tuple[str, ...], tuple[tuple[str, str], ...]], ...]] = (
    ("Markdown", "prose", "md markdown mdx", (), _XML_BLOCK),
    ("reStructuredText", "prose", "rst", (), ()),
    ("AsciiDoc", "prose", "adoc asciidoc", ("//",), ()),
    ("Org", "prose", "org", (), ()),
    ("LaTeX", "prose", "tex sty cls bib", ("%",), ()),
    ("Plain text", "prose", "txt text log me", (), ()),
    ("HTML", "prose", "html htm xhtml", (), _XML_BLOCK),
    ("Python", "code", "py pyi pyw", ("#",), ()),
    ("JavaScript", "code", "js mjs cjs jsx", ("//",), _C_BLOCK),
    ("TypeScript", "code", "ts tsx mts cts", ("//",), _C_BLOCK),
    ("Go", "code", "go", ("//",), _C_BLOCK),
    ("Rust", "code", "rs", ("//",), _C_BLOCK),
    ("C", "code", "c h", ("//",), _C_BLOCK),
    ("C++", "code", "cc cpp cxx hpp hh hxx", ("//",), _C_BLOCK),
    ("C#", "code", "cs", ("//",), _C_BLOCK),
    ("Java", "code", "java", ("//",), _C_BLOCK),
    ("Kotlin", "code", "kt kts", ("//",), _C_BLOCK),
    ("Swift", "code", "swift", ("//",), _C_BLOCK),
    ("Scala", "code", "scala", ("//",), _C_BLOCK),
    ("PHP", "code", "php", ("//", "#"), _C_BLOCK),
    ("Ruby", "code", "rb rake gemspec", ("#",), (("=begin", "=end"),)),
    ("Perl", "code", "pl pm", ("#",), ()),
    ("Lua", "code", "lua", ("--",), (("--[[", "]]"),)),
    ("R", "code", "r", ("#",), ()),
    ("Shell", "code", "sh bash zsh fish ksh", ("#",), ()),
    ("PowerShell", "code", "ps1 psm1", ("#",), (("<#", "#>"),)),
    ("SQL", "code", "sql", ("--",), _C_BLOCK),
    ("CSS", "code", "css scss less", ("//",), _C_BLOCK),
    ("Haskell", "code", "hs", ("--",), (("{-", "-}"),)),
    ("Elixir", "code", "ex exs", ("#",), ()),
    ("Erlang", "code", "erl hrl", ("%",), ()),
    ("Protocol Buffers", "code", "proto", ("//",), _C_BLOCK),
    ("Terraform", "code", "tf tfvars hcl", ("#", "//"), _C_BLOCK),
    ("Makefile", "code", "mk mak", ("#",), ()),
    ("Dockerfile", "code", "dockerfile", ("#",), ()),
    ("CMake", "code", "cmake", ("#",), ()),
    ("JSON", "data", "json jsonl ndjson ipynb geojson", (), ()),
    ("YAML", "data", "yaml yml", ("#",), ()),
    ("TOML", "data", "toml", ("#",), ()),
    ("INI", "data", "ini cfg conf properties env", ("#", ";"), ()),
    ("XML", "data", "xml xsd xsl svg plist", (), _XML_BLOCK),
    ("CSV", "data", "csv tsv", (), ()),
    ("Diff", "data", "diff patch", (), ()),
)
_NAMES: Final[Mapping[str, str]] = {
    "makefile": "Makefile", "gnumakefile": "Makefile", "dockerfile": "Dockerfile", "containerfile": "Dockerfile",
    "cmakelists.txt": "CMake", "rakefile": "Ruby", "gemfile": "Ruby", "vagrantfile": "Ruby",
    ".gitignore": "INI", ".dockerignore": "INI", ".editorconfig": "INI", ".gitattributes": "INI",
    ".bashrc": "Shell", ".profile": "Shell", "go.mod": "INI", "py.typed": "Plain text",
}  # fmt: skip
_SHEBANGS: Final[Mapping[str, str]] = {
    "python": "Python", "pypy": "Python", "bash": "Shell", "sh": "Shell", "dash": "Shell", "zsh": "Shell",
    "ksh": "Shell", "fish": "Shell", "node": "JavaScript", "deno": "TypeScript", "bun": "TypeScript",
    "ruby": "Ruby", "perl": "Perl", "lua": "Lua", "php": "PHP", "rscript": "R", "pwsh": "PowerShell",
    "make": "Makefile", "elixir": "Elixir",
}  # fmt: skip
_MAGIC: Final = (
    (b"\x89PNG\r\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "Zip archive"),
    (b"\x1f\x8b", "Gzip data"),
    (b"BZh", "Bzip2 data"),
    (b"\xfd7zXZ\0", "XZ data"),
    (b"(\xb5/\xfd", "Zstandard data"),
    (b"\x7fELF", "ELF program"),
    (b"SQLite format 3\0", "SQLite database"),
    (b"wOF2", "Web font"),
    (b"wOFF", "Web font"),
    (b"\0asm", "WebAssembly"),
    (b"RIFF", "RIFF media"),
    (b"OggS", "Ogg media"),
    (b"ID3", "MP3 audio"),
    (b"\xca\xfe\xba\xbe", "Java class"),
)
_SHEBANG = re.compile(r"#!\s*(?:\S*/)?([A-Za-z]+)[0-9.]*(?:\s+(?:-S\s+)?([A-Za-z]+))?")

LANGUAGES: Final[Mapping[str, Language]] = {row[0]: Language(row[0], row[1], row[3], row[4]) for row in _TABLE}
_BY_SUFFIX: Final = {suffix: LANGUAGES[row[0]] for row in _TABLE for suffix in row[2].split()}


def language_of(path: str, first_line: str = "") -> Language:
    """Return the language of a text file.

    A known name wins over the suffix, the suffix over the first line (``#!``); what none of them knows is plain text.
    """
    name = PurePosixPath(path.replace("\\", "/")).name.lower()
    by_name = _NAMES.get(name) or ("Dockerfile" if name.startswith("dockerfile.") else None)
    if by_name:
        return LANGUAGES[by_name]
    by_suffix = _BY_SUFFIX.get(name.rpartition(".")[2]) if "." in name else None
    return by_suffix or _by_shebang(first_line) or PLAIN


def binary_name(data: bytes) -> str:
    """Return what a binary file is by its first bytes, ``Binary`` when they say nothing."""
    return next((name for magic, name in _MAGIC if data.startswith(magic)), BINARY.name)


def _by_shebang(first_line: str) -> Language | None:
    match = _SHEBANG.match(first_line[:200])
    if not match:
        return None
    program = match[2] if match[1] == "env" and match[2] else match[1]
    name = _SHEBANGS.get(program.lower())
    return LANGUAGES[name] if name else None
