"""Near-duplicates, phrases of a folder, and who imports whom."""

from __future__ import annotations

import random

from callboard.agents.digest.digest import Digest, digest_bytes
from callboard.agents.digest.merge import merge
from callboard.agents.digest.shingle import estimate, jaccard, shingles, signature

WORDS = [
    f"{first}{second}"
    for first in ("ba", "ke", "lo", "mi", "nu", "ra", "so", "ti")
    for second in ("den", "fol", "gar", "lip", "mun", "pas", "rit", "vel")
]


def _text(seed: int, words: int = 600) -> list[str]:
    rng = random.Random(seed)
    return [rng.choice(WORDS) for _ in range(words)]


def _mutated(words: list[str], seed: int, changes: int) -> list[str]:
    rng = random.Random(seed)
    copy = list(words)
    for _ in range(changes):
        copy[rng.randrange(len(copy))] = "changed"
    return copy


def _digest(path: str, words: list[str]) -> Digest:
    return digest_bytes(path, (" ".join(words) + ".\n").encode())


def test_mutated_copies_are_found_and_different_texts_are_not() -> None:
    digests = []
    for number in range(30):
        original = _text(number)
        digests += [_digest(f"{number}-a.txt", original), _digest(f"{number}-b.txt", _mutated(original, number, 8))]
    pairs = merge(digests).pairs
    assert {(pair.one, pair.other) for pair in pairs} == {(f"{n}-a.txt", f"{n}-b.txt") for n in range(30)}
    assert all(0.7 < pair.similarity < 1 and not pair.is_identical for pair in pairs)


def test_identical_files_are_paired_once_each_and_marked() -> None:
    corpus = merge([_digest(f"{name}.txt", _text(1)) for name in "abcde"])
    assert [(pair.one, pair.other, pair.is_identical) for pair in corpus.pairs] == [
        ("a.txt", f"{name}.txt", True) for name in "bcde"
    ]


def test_empty_files_are_no_duplicates_of_each_other() -> None:
    assert merge([digest_bytes("a/__init__.py", b""), digest_bytes("b/__init__.py", b"")]).pairs == []


def test_the_estimate_is_close_to_the_exact_overlap() -> None:
    original = _text(7, 2_000)
    for changes in (0, 10, 40, 120):
        one, other = (shingles(" ".join(words)) for words in (original, _mutated(original, 3, changes)))
        assert abs(estimate(signature(one), signature(other)) - jaccard(one, other)) < 0.15


def test_a_digest_handed_in_twice_counts_once_and_order_does_not_matter() -> None:
    digests = [_digest(f"{n}.txt", _text(n)) for n in range(5)]
    assert merge([*digests, digests[2]]) == merge(reversed(digests))
    assert merge([*digests, digests[2]]).files == 5


def test_no_files_make_an_empty_corpus() -> None:
    corpus = merge([])
    assert (corpus.files, corpus.topics, corpus.pairs, corpus.languages) == (0, [], [], [])


def test_a_phrase_of_some_files_outweighs_a_word_of_all() -> None:
    common = "Every file here mentions gardens. "
    files = [
        digest_bytes(f"{n}.txt", (common + f"Something number{chr(97 + n)} entirely.\n").encode()) for n in range(8)
    ]
    files += [
        digest_bytes(
            f"z{n}.txt", (common + f"Late blight kills plants. Late blight spreads {chr(97 + n) * 4}.\n").encode()
        )
        for n in range(3)
    ]
    topics = [topic.text for topic in merge(files).topics]
    assert "late blight" in topics[:3]


def test_imports_are_linked_between_files_and_outside_packages_are_counted() -> None:
    sources = {
        "src/shop/__init__.py": "",
        "src/shop/cart.py": "from shop import price\nfrom .tax import vat\nimport json\n",
        "src/shop/price.py": "import json\nfrom shop.tax import vat\n",
        "src/shop/tax.py": "import decimal\n",
        "src/shop/json.py": "x = 1\n",
    }
    corpus = merge(digest_bytes(path, text.encode()) for path, text in sources.items())
    links = {module.path: module.imported_by for module in corpus.modules}
    assert links["src/shop/tax.py"] == ["src/shop/cart.py", "src/shop/price.py"]
    assert links["src/shop/price.py"] == ["src/shop/cart.py"]
    assert "src/shop/json.py" not in links
    assert dict(corpus.outside) == {"json": 2, "decimal": 1}


def test_totals_add_up() -> None:
    corpus = merge(
        [digest_bytes("a.py", b"x = 1\n# why\n\n"), digest_bytes("b.md", b"# Title\n"), digest_bytes("c", b"\0\1")]
    )
    assert corpus.size_bytes == sum(total.size_bytes for total in corpus.languages) == 13 + 8 + 2
    assert (corpus.lines.code, corpus.lines.comment, corpus.lines.blank) == (2, 1, 1)
    assert sum(each.files for each in corpus.sizes) == corpus.files == 3
