"""The bill of materials names what is there, holds to the format, and does not change by itself."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from callboard.cli.main import cli
from callboard.runtime.version import VERSION
from tests.support.shape import faults

ROOT = Path(__file__).parents[2]
REF = re.compile(r"pkg:pypi/[a-z0-9-]+@\S+")
COMPONENT = {
    "type": ("library", "application"),
    "bom-ref": REF,
    "name": re.compile(r"[a-z0-9]+(-[a-z0-9]+)*"),
    "version": re.compile(r"\d\S*"),
    "purl": REF,
    "licenses?": [({"expression": str}, {"license": {"name": str}})],
    "externalReferences?": [
        {"type": "distribution", "url": REF, "hashes": [{"alg": "SHA-256", "content": re.compile("[0-9a-f]{64}")}]}
    ],
}
DOCUMENT = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "serialNumber": re.compile(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "version": 1,
    "metadata": {"component": COMPONENT},
    "components": [COMPONENT],
    "dependencies": [{"ref": REF, "dependsOn": [REF]}],
}


def _sbom(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["sbom", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _check(found: dict[str, Any]) -> None:
    assert faults(found, DOCUMENT) == []
    refs = [each["bom-ref"] for each in found["components"]]
    assert len(set(refs)) == len(refs)
    own = found["metadata"]["component"]["bom-ref"]
    assert own == f"pkg:pypi/callboard@{VERSION}"
    assert {each["ref"] for each in found["dependencies"]} == {own, *refs}
    assert {ref for each in found["dependencies"] for ref in each["dependsOn"]} <= set(refs)


def test_of_a_lock_it_names_every_pin_with_its_hashes() -> None:
    for lock in (ROOT / "requirements-image.lock", ROOT / "requirements-core.lock"):
        found, text = _sbom("--lock", str(lock)), lock.read_text("utf-8")
        _check(found)
        pins = {
            (name.lower().replace("_", "-"), number)
            for name, number in re.findall(r"^(\S+)==([^\s;]+)", text, re.MULTILINE)
        }
        assert {(each["name"], each["version"]) for each in found["components"]} == pins
        given = [each["content"] for part in found["components"] for each in part["externalReferences"][0]["hashes"]]
        assert sorted(given) == sorted(re.findall("--hash=sha256:([0-9a-f]+)", text))
        assert _sbom("--lock", str(lock)) == found


def test_of_what_is_installed_it_names_what_we_import() -> None:
    found = _sbom()
    assert faults(found, DOCUMENT) == []
    named = {each["name"]: each["version"] for each in found["components"]}
    if named:  # run from its sources alone the package is not there to say what it needs
        _check(found)
        assert named["nats-py"] == version("nats-py")
        assert "pydantic-core" in named
        assert "pytest" not in named


def test_what_is_no_lock_is_refused(tmp_path: Path) -> None:
    for text in ("", "requests\n", "requests==2.0\n"):
        (tmp_path / "lock").write_text(text)
        done = CliRunner().invoke(cli, ["sbom", "--lock", str(tmp_path / "lock")])
        assert done.exit_code != 0


def test_a_broken_document_is_caught() -> None:
    """Negative control."""
    found = _sbom("--lock", str(ROOT / "requirements-core.lock"))
    assert faults(found | {"specVersion": "1.7"}, DOCUMENT)
    assert faults(found | {"components": [{**found["components"][0], "purl": "nats"}]}, DOCUMENT)
