"""Names of pools by label: one spelling for a set of labels, and back."""

from __future__ import annotations

import pytest

from callboard import capability
from callboard.runtime.capability import served
from callboard.runtime.errors import ConfigError, InvalidNameError, ModuleLoadError
from callboard.runtime.labels import fits, pool_name, split, told


def test_a_set_of_labels_has_one_name_and_comes_back_from_it() -> None:
    name = pool_name("embed", {"zone": "eu-1", "gpu": "yes"})
    assert name == "embed--gpu_yes--zone_eu-1"
    assert split(name) == ("embed", {"gpu": "yes", "zone": "eu-1"})
    assert told(name) == "embed on gpu=yes,zone=eu-1"
    assert pool_name("embed", {}) == told("embed") == "embed"
    assert split(pool_name("a_b--c", {"gpu": "yes"})) == ("a_b--c", {"gpu": "yes"})


@pytest.mark.parametrize(
    "name", ["embed", "embed--fast", "embed--zone_a--gpu_yes", "embed--gpu_yes--gpu_no", "--gpu_yes", "embed--gpu_"]
)
def test_what_is_not_that_spelling_asks_for_nothing(name: str) -> None:
    assert split(name) == (name, {})


@pytest.mark.parametrize(
    ("base", "labels"),
    [
        ("embed", {"GPU": "yes"}),
        ("embed", {"gpu": "a--b"}),
        ("embed", {"gpu": "a_b"}),
        ("embed", {"gpu": ""}),
        ("embed", {"gpu": "x" * 64}),
        ("embed_", {"gpu": "yes"}),
        ("embed--gpu_yes", {"zone": "a"}),
        ("no name", {}),
    ],
)
def test_what_cannot_be_a_name_is_refused(base: str, labels: dict[str, str]) -> None:
    with pytest.raises(InvalidNameError):
        pool_name(base, labels)


def test_who_bears_more_fits_and_who_bears_less_does_not() -> None:
    assert fits({"gpu": "yes", "zone": "a"}, {"gpu": "yes"})
    assert fits({}, {})
    assert not fits({"gpu": "no"}, {"gpu": "yes"})


def test_a_capability_that_asks_for_labels_is_served_by_those_who_bear_them() -> None:
    @capability("embed", labels={"gpu": "yes"})
    def embed() -> None: ...

    @capability
    def plain() -> None: ...

    both = [embed, plain]
    assert served(both, None, has_actors=False) == [plain]
    assert served(both, None, has_actors=False, labels={"gpu": "yes", "zone": "a"}) == both
    with pytest.raises(ModuleLoadError, match="--labels gpu=yes"):
        served([embed], None, has_actors=False)
    with pytest.raises(ConfigError, match="labels="):
        capability("embed--gpu_yes")(lambda: None)
