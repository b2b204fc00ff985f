"""What deploys a cluster: valid by the schemas, with no listener for the public, tokens on, and images by version."""

import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from command import ROOT
from sweeps.commands.cli import app

DEPLOY = ROOT / "sweeps" / "deploy"
RAYJOB = DEPLOY / "kuberay-rayjob.yaml"
RAY_UP = DEPLOY / "ray-up-aws.yaml"
SCHEMAS = {
    RAYJOB: Path(__file__).with_name("rayjob_schema.json"),
    RAY_UP: Path(ray.__file__).parent / "autoscaler" / "ray-schema.json",
}


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def values(place: Any, name: str) -> Iterator[Any]:
    """All values under keys of this name, however deep."""
    if isinstance(place, dict):
        for key, value in place.items():
            if key == name:
                yield value
            yield from values(value, name)
    elif isinstance(place, list):
        for item in place:
            yield from values(item, name)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_deployments_are_valid_by_their_schema(path: Path) -> None:
    jsonschema.validate(load(path), json.loads(SCHEMAS[path].read_text()))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_the_schemas_refuse_a_misspelt_field(path: Path) -> None:
    spelt_wrongly = json.loads(json.dumps(load(path)).replace('"image"', '"imgae"').replace('"max_workers"', '"max"'))
    with pytest.raises(jsonschema.ValidationError, match=r"unexpected|is a required property"):
        jsonschema.validate(spelt_wrongly, json.loads(SCHEMAS[path].read_text()))


def test_every_image_has_a_version_and_rays_is_the_one_that_passed_the_tests() -> None:
    images = [image for path in SCHEMAS for image in values(load(path), "image")]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 4
    assert [image for image in images if not re.search(r":[0-9]+\.[0-9]+\.[0-9]+", image)] == []
    assert images[-1].startswith(f"rayproject/ray:{version('ray')}-")
    assert load(RAYJOB)["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_nothing_listens_for_the_public_and_ray_asks_for_its_token() -> None:
    cluster = load(RAYJOB)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert list(values(cluster, "enableIngress")) == [False]
    assert list(values(cluster, "allowPrivilegeEscalation")) == [False, False]
    up = load(RAY_UP)
    assert up["provider"]["use_internal_ips"] is True
    ranges = [one["CidrIp"] for one in values(up["provider"], "IpRanges") for one in one]
    assert ranges == ["10.0.0.0/8"]
    starts = [line for name in ("head_start_ray_commands", "worker_start_ray_commands") for line in up[name]]
    assert sum("RAY_AUTH_MODE=token ray start" in line for line in starts) == 2
    assert not any(re.search(r"\b0\.0\.0\.0", text) for text in (RAYJOB.read_text(), RAY_UP.read_text()))
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)


def test_the_commands_that_the_manifests_give_exist() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for text in (load(RAYJOB)["spec"]["entrypoint"], RAY_UP.read_text()):
        given = re.findall(r"python -m sweeps (\S+)", text)
        assert given
        assert set(given) <= commands
