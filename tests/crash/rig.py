"""The reference for a scenario: clean runs, made once, and checks of a target after any other run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash.child import Scenario, attempt
from tests.crash.forked import apart
from tests.crash.reader import Look, Torn, fingerprint, look

_CHANCE = re.compile(
    r"(?<=next-)\w{8}|(?<=\.etl-)\w{8}|(?<=prob)ed?-\d+|(?<=\d{6}\.)\w{8}(?=\.parquet)|(?<=\.)[0-9a-f]{64}(?=\.)"
)
"""Random parts and process ids in the names of temporary files, and of the files of Delta tables; digests in names."""
_VARYING = re.compile(r"data/lake/(strikes|\w+/_delta_log/\d+\.json)")
"""A recovery of Delta tables may need more commits, and may list strikes again that happen to have the same bytes."""


class Rig:
    """A scenario with its clean states: `old` (before), `new` (after the run) and `after` (after one more).

    This process never opens the engine: it stays without threads and can be forked for each case.
    """

    def __init__(self, scenario: Scenario, work: Path, *, thorough: bool) -> None:
        """`thorough`: let the next run recover from states that differ in any byte, not only in those it reads."""
        self.scenario = scenario
        self._thorough = thorough
        self.stderr = work / "stderr"
        self._case = work / "case"
        self._seen: dict[str, object] = {}
        self._healed: dict[str, list[str]] = {}
        self._clean = [work / name for name in ("old", "new", "after")]
        self._prepare()
        self._looks = {clean.name: self._look(clean) for clean in self._clean}
        self._files = self._fingerprint(self._clean[0])

    def _prepare(self) -> None:
        old, new, after = self._clean
        (old / "data").mkdir(parents=True)
        for _ in range(self.scenario.before):
            self._publish(old)
        for earlier, later in ((old, new), (new, after)):
            shutil.copytree(earlier, later)
            self._publish(later)

    def _publish(self, folder: Path) -> None:
        code = apart(lambda: attempt(self.scenario.kind, self.scenario.target(folder)))
        if code:
            message = f"{self.scenario} fails by itself: exit {code}"
            raise RuntimeError(message)

    def fresh(self) -> Path:
        """The folder of the next case, in the state before the run."""
        shutil.rmtree(self._case, ignore_errors=True)
        shutil.copytree(self._clean[0], self._case)
        return self._case

    def look(self, folder: Path, earlier: str = "old") -> tuple[str, list[str]]:
        """The state that a reader sees (old, new, after, or neither), and its problems.

        `earlier` is the state seen before: a target never goes back.
        """
        found = self._look(folder)
        if isinstance(found, str):
            return "neither", [f"torn: {found}"]
        states = ("old", "new") if earlier == "old" else ("new", "after")
        saw = next((name for name in states if self._looks[name] == found), "neither")
        problems = [f"visible to others: {name}" for name in exposed(folder / "data")]
        if saw == "neither":
            problems.append(f"neither state: {_differing(found, self._looks)}")
        if saw == "old":
            now = self._fingerprint(folder)
            problems += [f"not as it was: {name}" for name, digest in self._files.items() if now.get(name) != digest]
        return saw, problems

    def _fingerprint(self, folder: Path) -> dict[str, str]:
        found = apart(lambda: fingerprint(self.scenario.kind, self.scenario.target(folder)))
        return dict(found)  # type: ignore[call-overload,no-any-return]

    def heal(self, folder: Path, saw: str) -> list[str]:
        """Let the next run recover without intervention, and return the differences from a clean run.

        The same files recover the same way, so that is tried once. A run reads its target and the manifests that killed
        runs prepared; of the other leftovers it sees only the names.
        """
        key = f"{saw} {_tree(folder, lambda path: self._thorough or _read_again(path))}"
        if key not in self._healed:
            self._healed[key] = self._heal(folder, saw)
        return self._healed[key]

    def left(self, folder: Path) -> list[str]:
        """Files next to the target that a clean run does not leave."""
        here = folder / "data" / ".etl"
        return sorted(path.name for path in here.glob("*") if path.suffix != ".lock")

    def told(self) -> str:
        """The last line that the last traced process wrote to stderr."""
        return self.stderr.read_text(errors="replace").strip().rpartition("\n")[2] or "it said nothing"

    def _heal(self, folder: Path, saw: str) -> list[str]:
        wanted = {"old": "new", "new": "after"}.get(saw)
        if wanted is None:
            return []
        code = apart(lambda: publish_quietly(self.scenario, folder, self.stderr))
        if code:
            return [f"the next run fails with {code}"]
        found = self._look(folder)
        clean = self._clean[1 if wanted == "new" else 2]
        problems = [] if found == self._looks[wanted] else [f"the next run ends elsewhere: {found}"]
        there, wanted_there = _names(folder), _names(clean)
        problems += [f"left over: {name}" for name in sorted((there - wanted_there).elements())]
        return problems + [f"gone: {name}" for name in sorted((wanted_there - there).elements())]

    def _look(self, folder: Path) -> Look | str:
        """The state that a reader sees, or why it is torn; targets with the same bytes are read only once."""
        target = self.scenario.target(folder)
        key = _tree(target)
        if key not in self._seen:
            self._seen[key] = apart(lambda: _seen(self.scenario.kind, target))
        return _told(self._seen[key])


def publish_quietly(scenario: Scenario, folder: Path, stderr: Path) -> int:
    """Publish the next run without a planted bug."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    return attempt(scenario.kind, scenario.target(folder))


def exposed(folder: Path) -> Iterator[str]:
    """Files and folders that other users could open, because the modes of all folders above them allow it."""
    for entry in os.scandir(folder):
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except FileNotFoundError:
            continue
        if mode & 0o077:
            yield f"{entry.path} {stat.filemode(mode)}"
            if entry.is_dir(follow_symlinks=False):
                yield from exposed(Path(entry.path))


def _seen(kind: str, target: Path) -> Look | str:
    try:
        return look(kind, target)
    except Torn as torn:
        return str(torn)


def _told(answer: object) -> Look | str:
    return answer if isinstance(answer, str) else {str(key): str(value) for key, value in dict(answer).items()}  # type: ignore[call-overload]


def _differing(found: Look, looks: dict[str, Look | str]) -> str:
    return json.dumps({"found": found} | looks)


def _names(folder: Path) -> Counter[str]:
    """How often each name is there, without the random parts of names."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return Counter(_CHANCE.sub("", name) for name in names if not _VARYING.match(name))


def _read_again(path: Path) -> bool:
    return ".etl" not in path.parts or path.name == "manifest.json"


def _tree(folder: Path, counts: Callable[[Path], bool] = lambda _: True) -> str:
    """A digest of all names, modes and, if `counts` accepts a file, bytes; without random parts and process ids."""
    found = hashlib.sha256()
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*"), key=lambda path: _CHANCE.sub("", str(path)))
    for path in paths:
        content = path.read_bytes() if path.is_file() and path.suffix != ".lock" and counts(path) else b""
        name = _CHANCE.sub("", str(path.relative_to(folder)))
        found.update(f"{name} {path.stat().st_mode} {len(content)}\n".encode() + content)
    return found.hexdigest()
