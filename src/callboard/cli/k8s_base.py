"""What stands once in a deployment, as data: the Job that makes the streams, and the registry of servers with users."""

from __future__ import annotations

from typing import Final

from callboard.cli.k8s_pod import (
    HEALTH_PORT,
    Login,
    Manifest,
    Room,
    disruption_budget,
    labels,
    service_account,
    spread,
    template,
    variables,
)
from callboard.cli.k8s_pool import MARGIN_S, provision_job

REPLICAS: Final = 2
DRAIN_S: Final = 30


def provision() -> list[Manifest]:
    """Return the Job that makes the streams, with the identity that all such Jobs share."""
    marks = labels("provision", "streams")
    return [
        service_account("callboard-provision", marks),
        provision_job("callboard-provision", ["provision"], instance="streams", has_login=False),
    ]


def registry() -> list[Manifest]:
    """Return the workers that host the registry and nothing else: one leads, the other stands by."""
    marks = labels("registry", "registry")
    settings = {
        "CALLBOARD_WORKER__DRAIN_GRACE_S": str(DRAIN_S),
        "CALLBOARD_WORKER__HEALTH_HOST": "0.0.0.0",  # noqa: S104 - probes come from the node
        "CALLBOARD_WORKER__HEALTH_PORT": str(HEALTH_PORT),
    }
    pod = template(
        name="registry",
        account="callboard-registry",
        marks=marks,
        arguments=["worker", "start", "--registry"],
        env=variables(settings),
        room=Room(cpu="100m", memory="256Mi"),
        grace_s=DRAIN_S + MARGIN_S,
        login=Login(user="registry", hosts_registry=True),
        more={"topologySpreadConstraints": spread(marks)},
    )
    deployment: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "callboard-registry", "labels": marks},
        "spec": {
            "replicas": REPLICAS,
            "revisionHistoryLimit": 5,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": marks},
            "template": pod,
        },
    }
    return [service_account("callboard-registry", marks), deployment, disruption_budget("callboard-registry", marks)]


def login_patches() -> dict[str, list[Manifest]]:
    """Return JSON patches, by file, that make pods of servers without users those of servers with them."""
    return {
        "provision.patch.yaml": _patch(Login(user="operator", is_worker=False)),
        "default.patch.yaml": _patch(Login(user="worker-default", is_guest=True)),
    }


def _patch(login: Login) -> list[Manifest]:
    pod = template(
        name="-", account="-", marks={}, arguments=[], env=[], room=Room(), grace_s=0, login=login, is_served=False
    )["spec"]
    container = pod["containers"][0]
    inside = "/spec/template/spec"
    return [
        *(
            {"op": "add", "path": f"{inside}/containers/0/env/-", "value": variable}
            for variable in container["env"]
            if variable["name"].startswith("CALLBOARD_")
        ),
        {"op": "add", "path": f"{inside}/containers/0/volumeMounts/-", "value": container["volumeMounts"][-1]},
        {"op": "add", "path": f"{inside}/volumes/-", "value": pod["volumes"][-1]},
    ]
