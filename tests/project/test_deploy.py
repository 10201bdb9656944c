"""The files in `configs/deploy/`: a tool that knows the format checks each, and the cron wrapper is executed."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from etl.cli.app import app
from etl.config import load
from etl.errors import AuthError
from tests.support.pages import BIN, PAGES, ROOT, Reader, numbers, rows, section

DEPLOY = ROOT / "configs" / "deploy"
WRAPPER = DEPLOY / "etl-nightly.sh"
GROUPS = {name: numbers(codes) for name, codes, _ in rows(section("Exit codes", PAGES["operations"]))[:4]}
"""Exit codes by group, as the documentation lists them; `test_readme.py` compares them with the code."""
STOPPED = {130, 143}
COMMANDS = get_command(app).commands


def unit(name: str) -> ConfigParser:
    """A parsed systemd unit."""
    parsed = ConfigParser(interpolation=None, comment_prefixes=("#",))
    parsed.optionxform = str
    parsed.read_string((DEPLOY / name).read_text())
    return parsed


def runs(words: list[str]) -> bool:
    """Whether the words after `etl` are an existing command and configuration."""
    command, config = words
    return command in COMMANDS and (ROOT / config).is_file()


def test_the_page_lists_every_file() -> None:
    """The operations page names exactly the files of the folder."""
    table = section("Schedules", PAGES["operations"])
    named = {name for cells in rows(table) for name in re.findall(r"`([\w.-]+)`", cells[0])}
    assert named == {path.name for path in DEPLOY.iterdir()}


def test_wrapper_passes_shellcheck() -> None:
    """The cron wrapper is executable and passes shellcheck."""
    assert WRAPPER.stat().st_mode & 0o111
    checked = subprocess.run([BIN / "shellcheck", WRAPPER], capture_output=True, text=True, check=False)  # noqa: S603
    assert (checked.returncode, checked.stdout) == (0, "")


def test_wrapper_against_the_sandbox(reader: Reader) -> None:
    """The wrapper prints nothing after a complete run, and the message after a failure, and exits with the code."""
    wrapper = f"sh '{reader.folder}/configs/deploy/etl-nightly.sh'"
    token = reader.folder / "token"
    token.write_text(reader.environment["ELEAPI_TOKEN"])
    settings = {"ETL_HOME": str(reader.folder), "ETL_TOKEN_FILE": "token", "ELEAPI_TOKEN": ""}
    well = reader.execute(wrapper, **settings)
    assert (well.returncode, well.stdout, well.stderr) == (0, "", "")
    token.write_text("0" * 24)
    badly = reader.execute(wrapper, **settings)
    assert badly.returncode == AuthError.exit_code
    assert "error 10: " in badly.stdout
    assert token.read_text() not in badly.stdout + "".join(
        path.read_text() for path in (reader.folder / "log").iterdir()
    )


@pytest.mark.parametrize("code", sorted(set().union(*GROUPS.values())))
def test_wrapper_knows_every_exit_code(tmp_path: Path, code: int) -> None:
    """The wrapper retries if that can help, prints only messages that need attention, and exits with etl's code."""
    program = tmp_path / ".venv" / "bin" / "etl"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho run >>calls\necho summary\necho 'error {code}: message' >&2\nexit {code}\n")
    program.chmod(0o700)
    done = execute(tmp_path)
    assert done.returncode == code
    assert len((tmp_path / "calls").read_text().split()) == (3 if code in GROUPS["retry"] - STOPPED else 1)
    assert bool(done.stdout) == (code not in {0, *GROUPS["busy"]})
    assert ("running again does not help" in done.stdout) == (code in GROUPS["act"])
    [log] = (tmp_path / "log").glob("*Z.log")
    assert f"error {code}: message" in log.read_text()
    assert log.read_text().endswith("summary\n")
    assert log.stat().st_mode & 0o077 == 0


def test_wrapper_runs_once_at_a_time(tmp_path: Path) -> None:
    """The wrapper exits with 30 and changes nothing while another one runs."""
    (tmp_path / "log").mkdir()
    with (tmp_path / "log" / "nightly.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = execute(tmp_path)
    assert (done.returncode, done.stdout) == (30, "")
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["nightly.lock"]


def execute(home: Path) -> subprocess.CompletedProcess[str]:
    """Run the wrapper in a folder, with three attempts and no pause."""
    settings = {"ETL_HOME": str(home), "ETL_ATTEMPTS": "3", "ETL_PAUSE": "0", "PATH": "/usr/bin:/bin"}
    return subprocess.run(["/bin/sh", WRAPPER], env=settings, capture_output=True, text=True, check=False)  # noqa: S603


def test_units_name_what_exists() -> None:
    """The service runs an existing command and configuration, and lists the exit codes of the groups."""
    service, timer = unit("etl.service"), unit("etl.timer")
    assert runs(service["Service"]["ExecStart"].split()[1:])
    assert numbers(service["Service"]["RestartPreventExitStatus"]) == GROUPS["act"]
    assert numbers(service["Service"]["SuccessExitStatus"]) == (GROUPS["published"] | GROUPS["busy"]) - {0}
    assert service["Service"]["Restart"] == "on-failure"
    assert service["Service"]["Type"] == "oneshot"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_units_pass_systemd(tmp_path: Path) -> None:
    """Systemd accepts both units, with an installed program in place of the server's."""
    for name in ("etl.service", "etl.timer"):
        text = (DEPLOY / name).read_text().replace("/srv/etl/.venv/bin/etl", sys.executable)
        (tmp_path / name).write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", tmp_path / "etl.service", tmp_path / "etl.timer"]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def objects(name: str) -> list[Any]:
    """The objects in a file, each valid by the Kubernetes schema."""
    found = [*yaml.safe_load_all((DEPLOY / name).read_text())]
    for document in found:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    return found


def test_cronjob_fits_its_schema_and_the_image() -> None:
    """Both objects match the Kubernetes schema; user, volume, arguments and exit codes match the image."""
    claim, job = objects("cronjob.yaml")
    image = (ROOT / "Dockerfile").read_text()
    spec = job["spec"]["jobTemplate"]["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    [rule] = spec["podFailurePolicy"]["rules"]
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert runs(container["args"])
    assert set(rule["onExitCodes"]["values"]) == GROUPS["act"] | GROUPS["published"] - {0}
    assert pod["restartPolicy"] == "Never"
    user = pod["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in image
    assert user["fsGroupChangePolicy"] == "OnRootMismatch"
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == re.findall(
        r"^VOLUME (.+)$", image, re.MULTILINE
    )
    [volume] = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


CLUSTER = {
    "distributed.scheduler.worker-ttl": "30s",
    "distributed.scheduler.locks.lease-timeout": "20s",
    "distributed.scheduler.locks.lease-validation-interval": "2s",
    "temporary-directory": "/tmp",  # noqa: S108 - in a container
}
"""The settings of Dask in every file: how soon it notices that a worker has died."""


def test_cluster_fits_its_schema_and_itself(tmp_path: Path) -> None:
    """All objects match the Kubernetes schema, and all pods have one image, user, configuration, volume and tokens."""
    config, claim, policy, service, scheduler, worker, job = objects("cluster.yaml")
    templates = [scheduler["spec"]["template"], worker["spec"]["template"]]
    templates.append(job["spec"]["jobTemplate"]["spec"]["template"])
    labels = [template["metadata"]["labels"] for template in templates]
    assert all(policy["spec"]["podSelector"]["matchLabels"].items() <= one.items() for one in labels)
    assert [service["spec"]["selector"].items() <= one.items() for one in labels] == [True, False, False]
    [single] = (one for one in objects("cronjob.yaml") if one["kind"] == "CronJob")
    pods = [template["spec"] for template in templates]
    alone = single["spec"]["jobTemplate"]["spec"]
    assert job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"] == alone["podFailurePolicy"]
    for pod in pods:
        [container] = pod["containers"]
        assert pod["securityContext"] == alone["template"]["spec"]["securityContext"]
        assert container["securityContext"] == alone["template"]["spec"]["containers"][0]["securityContext"]
        assert container["image"] == alone["template"]["spec"]["containers"][0]["image"]
        assert container["env"] == [{"name": "DASK_CONFIG", "value": "/etc/etl/dask.yaml"}]
    assert pods[1]["volumes"] == pods[2]["volumes"]
    assert pods[1]["containers"][0]["volumeMounts"] == pods[2]["containers"][0]["volumeMounts"]
    assert pods[1]["volumes"][1]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    dask = yaml.safe_load(config["data"]["dask.yaml"])
    assert {key: reduce(getitem, key.split("."), dask) for key in CLUSTER} == CLUSTER
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert pods[1]["containers"][0]["command"][:3] == ["dask", "worker", address]
    assert pods[2]["containers"][0]["args"] == ["run", "/etc/etl/etl.toml", "--cluster", address]
    assert named_accounts(config["data"]["etl.toml"], tmp_path) == ["shop"]


def named_accounts(text: str, folder: Path) -> list[str]:
    """The accounts of a configuration that is given a token for one."""
    (folder / "tokens").mkdir()
    (folder / "tokens" / "shop").write_text("token")
    (folder / "etl.toml").write_text(text.replace("/run/secrets/etl", f"{folder}/tokens"))
    return [account.name for account in load(folder / "etl.toml", environ={}).accounts]


def test_compose_fits_the_image_and_itself(tmp_path: Path) -> None:
    """All services have one image, user, settings and volumes, none publishes a port, and the export uses them."""
    text = (DEPLOY / "compose.yaml").read_text()
    found = yaml.safe_load(text)
    own = {"entrypoint", "command", "depends_on", "profiles", "restart"}
    shared = found["x-etl"]
    for service in found["services"].values():
        assert {key: value for key, value in service.items() if key not in own} == shared
    image = (ROOT / "Dockerfile").read_text()
    assert f"USER {shared['user']}\n" in image
    assert shared["read_only"] is True
    assert {volume.partition(":")[0] for volume in shared["volumes"]} == {"data", "./etl.toml", "./tokens"}
    assert found["volumes"].keys() == {"data"}
    settings = {f"DASK_{key}".upper().replace(".", "__").replace("-", "_"): value for key, value in CLUSTER.items()}
    assert shared["environment"] == settings
    scheduler, worker, export = (found["services"][name] for name in ("scheduler", "worker", "etl"))
    assert scheduler["entrypoint"][:4] == ["dask", "scheduler", "--port", "8786"]
    assert worker["entrypoint"][:3] == ["dask", "worker", "tcp://scheduler:8786"]
    assert export["command"] == ["run", "/etc/etl/etl.toml", "--cluster", "tcp://scheduler:8786"]
    lines = re.findall(r"^#   (\[accounts_from\]|\w+ = .*)$", text, re.MULTILINE)
    assert named_accounts("\n".join([*lines, '[sinks.duckdb]\npath = "x.duckdb"']), tmp_path) == ["shop"]
