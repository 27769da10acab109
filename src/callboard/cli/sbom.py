"""``callboard sbom``: the bill of materials, of what is installed or of what a lock file pins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from callboard.cli.session import example


@click.command("sbom", epilog=example("callboard sbom > callboard.cdx.json", "callboard sbom --lock requirements.lock"))
@click.option("--lock", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of what this file pins.")
def command(lock: Path | None) -> None:
    """Print the bill of materials as CycloneDX 1.6 JSON.

    Without --lock it names Callboard and the installed packages that it needs, with their licences; with --lock the
    versions that the file pins, with their hashes. The same input gives the same document: it bears
    neither a time nor a random number.
    """
    components, needs = _installed() if lock is None else _pinned(lock.read_text("utf-8"))
    click.echo(json.dumps(_document(components, needs), indent=2))


def _document(components: list[dict[str, Any]], needs: dict[str, list[str]]) -> dict[str, Any]:
    import uuid

    from callboard.runtime.version import VERSION

    root = f"pkg:pypi/callboard@{VERSION}"
    own = {"type": "application", "bom-ref": root, "name": "callboard", "version": VERSION, "purl": root}
    refs = (root, *sorted(needs.keys() - {root}))
    body = {
        "metadata": {"component": own},
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": sorted(needs[ref])} for ref in refs],
    }
    # the same content bears the same number
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{number}", "version": 1}
    return head | body


def _component(name: str, version: str) -> dict[str, Any]:
    ref = f"pkg:pypi/{name}@{version}"
    return {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref}


def _pinned(text: str) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Read a lock file; it does not say what each package needs, so all are listed under Callboard."""
    import re

    from callboard.runtime.errors import InputError
    from callboard.runtime.version import VERSION

    components = []
    for entry in re.split(r"\n(?=\S)", text):
        found = re.match(r"([\w.-]+)==([^\s;\\]+)", entry)
        if found is not None:
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry)
            if not hashes:
                message = f"{found[1]} has no hash; make the lock with hashes"
                raise InputError(message)
            # several files of one version: any of them may be the one that is installed
            given = [{"alg": "SHA-256", "content": each} for each in sorted(hashes)]
            ref = f"pkg:pypi/{_plain(found[1])}@{found[2]}"
            references = [{"type": "distribution", "url": ref, "hashes": given}]
            components.append(_component(_plain(found[1]), found[2]) | {"externalReferences": references})
    if not components:
        message = "the file pins nothing: a lock has lines such as name==1.0 --hash=sha256:…"
        raise InputError(message)
    refs = [each["bom-ref"] for each in components]
    return components, {f"pkg:pypi/callboard@{VERSION}": refs, **{ref: [] for ref in refs}}


def _installed() -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Follow what Callboard's package asks for through what is installed; its own extras count when they are there."""
    import re
    from importlib.metadata import PackageNotFoundError, distribution

    from callboard.runtime.version import VERSION

    components: dict[str, dict[str, Any]] = {}
    needs: dict[str, list[str]] = {}
    waiting = [("callboard", f"pkg:pypi/callboard@{VERSION}")]
    while waiting:
        name, ref = waiting.pop()
        if ref in needs:
            continue
        needs[ref] = []
        try:
            asked = distribution(name).requires or []
        except PackageNotFoundError:  # run from its sources, without being installed
            asked = []
        if name != "callboard":
            asked = [each for each in asked if "extra ==" not in each]
        for wanted in sorted({_plain(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in asked} - {"callboard"}):
            try:
                found = distribution(wanted)
            except PackageNotFoundError:  # an extra, or for another platform
                continue
            components[wanted] = _component(wanted, found.version) | _licence(found.metadata)
            needs[ref].append(components[wanted]["bom-ref"])
            waiting.append((wanted, components[wanted]["bom-ref"]))
    return [components[name] for name in sorted(components)], needs


def _licence(metadata: Any) -> dict[str, Any]:  # noqa: ANN401 - what a package says of itself
    expression = metadata.get("License-Expression")
    if expression:
        return {"licenses": [{"expression": expression}]}
    named = [
        each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or () if each.startswith("License ::")
    ]
    return {"licenses": [{"license": {"name": name}} for name in named]} if named else {}


def _plain(name: str) -> str:
    """Return a package's name in the form that names are compared in."""
    import re

    return re.sub(r"[-_.]+", "-", name).lower()
