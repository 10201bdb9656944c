"""The files in `configs/deploy/`: a tool that knows the format checks each, and the cron wrapper is executed."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from etl.cli.app import app
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


def test_cronjob_fits_its_schema_and_the_image() -> None:
    """Both objects match the Kubernetes schema; user, volume, arguments and exit codes match the image."""
    claim, job = yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text())
    for document in (claim, job):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
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
