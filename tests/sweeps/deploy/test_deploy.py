"""What deploys a cluster: valid by the schemas, with no listener for the public, tokens on, and images by version."""

import json
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from docker.utils.build import exclude_paths

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
    images.append(base_image(TAG="2.60.0-py311", DIGEST=SOME_DIGEST))
    assert len(images) == 4
    assert base_image(DIGEST=SOME_DIGEST) == images[-1]
    assert [image for image in images if not re.search(r":[0-9]+\.[0-9]+\.[0-9]+", image)] == []
    assert images[-1].startswith(f"rayproject/ray:{version('ray')}-")
    assert load(RAYJOB)["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


SOME_DIGEST = f"sha256:{'0123456789abcdef' * 4}"
REFERENCE = re.compile(r"[a-z0-9/._-]+(:[\w][\w.-]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,})?", re.ASCII)
"""An image as Docker accepts it. Source: the grammar of github.com/distribution/reference, without ports."""


def base_image(**given: str) -> str:
    """The base image as a build with these arguments names it."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    before, (line,) = lines[: lines.index("WORKDIR /home/ray/pretune")], [x for x in lines if x.startswith("FROM ")]
    arguments = dict(one.removeprefix("ARG ").partition("=")[::2] for one in before if one.startswith("ARG "))
    assert given.keys() <= arguments.keys()
    return re.sub(r"\$\{(\w+)\}", lambda name: (arguments | given)[name[1]], line.removeprefix("FROM "))


@pytest.mark.parametrize("digest", ["", "2.60.0-py311", "sha256:abc", "latest"])
def test_no_image_is_built_on_a_tag_without_a_digest(digest: str) -> None:
    assert REFERENCE.fullmatch(base_image(DIGEST=SOME_DIGEST))
    assert REFERENCE.fullmatch("rayproject/ray:2.60.0-py311")
    assert not REFERENCE.fullmatch(base_image(DIGEST=digest))
    assert not REFERENCE.fullmatch(base_image())


def test_the_readme_and_the_dockerfile_give_the_same_commands_and_the_arguments_that_it_takes() -> None:
    texts = [(DEPLOY / name).read_text() for name in ("README.md", "Dockerfile")]
    in_readme, in_file = (
        re.findall(r"^(?:\$|#  ) (docker (?:buildx|build) .*)$", text, re.MULTILINE) for text in texts
    )
    assert len(in_readme) == 2
    assert in_readme == in_file
    assert base_image(DIGEST=SOME_DIGEST).startswith(in_readme[0].split()[-1])
    assert re.findall(r"--build-arg (\w+)=", in_readme[1]) == ["DIGEST"]


PLANTED = [
    *(".env", ".env.production", ".git/config", ".netrc", ".aws/credentials", ".ssh/id_ed25519", ".venv/pyvenv.cfg"),
    *("results/mlflow.db", "results/prepared/a/manifest.json", "mlflow.db", "mlartifacts/1/a", "my-corpus.jsonl"),
    *("token.txt", "id_rsa", "service-account.json", "my-sweep.yaml", "build/x", ".mypy_cache/x", "tests/conftest.py"),
    *("sweeps/.env", "sweeps/configs/.env.local", "sweeps/results/mlflow.db", "core/mlflow.db-wal", "core/.git/config"),
    *("sweeps/deploy/tls.key", "sweeps/deploy/ca.pem", "sweeps/aws-credentials.json", "data_pipeline/secrets.yaml"),
    *("core/__pycache__/a.pyc", "pretune.egg-info/PKG-INFO", ".dockerignore", "sweeps/mlartifacts/1/a"),
]


def test_an_image_gets_the_packages_and_nothing_that_lies_beside_or_hides_in_them(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    parts = ("core/", "data_pipeline/", "sweeps/", "pyproject.toml", "constraints.txt", "README.md")
    needed = {name for name in listed if name.startswith(parts)}
    for name in (*needed, *PLANTED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    # Docker's own client for Python decides, which comes with MLflow.
    sent = {name for name in exclude_paths(str(tmp_path), patterns) if (tmp_path / name).is_file()}
    assert len(needed) > 250
    # The client sends its own list along, and the builder leaves it out.
    assert sent - {".dockerignore"} == needed


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
