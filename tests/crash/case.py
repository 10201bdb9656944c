"""One case: a publication, its fault, and a check that everything promised holds afterwards."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import syscalls
from tests.crash.child import Scenario, attempt
from tests.crash.rig import Rig
from tests.crash.syscalls import CHANGING, FAILING, SHORT, Syscall
from tests.crash.tracer import KILL, Call, Ended, trace

_TOLD = {20, 21, 22}
"""Exit codes that report a problem with the target."""
_NEEDS_ROOM = syscalls.STORING | {"openat", "mkdir", "mkdirat", "fallocate", "sendfile", "copy_file_range"}
_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault at the n-th watched call."""

    n: int
    errno: int = 0
    """The call fails with this; 0: the process is killed."""
    lasting: bool = False
    """Every later call that needs space fails, too; on a read-only disk, every one that changes anything."""
    then: int = 0
    """The next run is killed at its `then`-th call; 0: it is not."""

    @property
    def name(self) -> str:
        """An errno's name, `SIGKILL`, or `SHORT` for a write of half the bytes."""
        return "SHORT" if self.errno == SHORT else errno.errorcode[self.errno] if self.errno else "SIGKILL"

    @property
    def kind(self) -> str:
        """The name by which cases are counted."""
        return f"{self.name}{' for good' if self.lasting else ' twice' if self.then else ''}"

    @property
    def watched(self) -> tuple[Syscall, ...]:
        """The calls that are counted."""
        return FAILING if self.errno else CHANGING

    def decide(self, call: Call) -> int:
        """The decision on a call; see `tracer.trace`."""
        if call.n == self.n or (self.lasting and call.n > self.n and self._hits(call)):
            return self.errno or KILL
        return 0

    def _hits(self, call: Call) -> bool:
        if self.errno == errno.EROFS:
            return errno.EROFS in call.what.errnos
        return call.what.name in _NEEDS_ROOM and not call.what.reads

    def __str__(self) -> str:
        """Readable, with the values needed to repeat it."""
        what = self.name
        lasting = " for good" if self.lasting else ""
        then = f", then SIGKILL at {self.then}" if self.then else ""
        return f"{what}{lasting} at {self.n}{then}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a case."""

    scenario: str
    kind: str
    fault: str
    call: str
    """The call that was hit; empty if the publication made no such call."""
    syscall: str
    saw: str
    """The state that a reader saw afterwards: old, new, or neither."""
    code: int
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line with the values needed to repeat it, and one for each problem."""
        place = f"{self.scenario}: {self.fault} {self.call} ended with {self.code}, {self.saw}"
        return "\n    ".join((place, *self.problems))


def play(rig: Rig, fault: Fault) -> Verdict:
    """Publish with the fault, check the target, let the next run recover, check again."""
    folder = rig.fresh()
    ended = _publish(rig, folder, fault.watched, fault)
    hit = next((call for call in ended.calls if call.n == fault.n), None)
    saw, problems = rig.look(folder)
    if hit is None:
        problems += [] if (ended.code, saw) == (0, "new") else [f"undisturbed, it ended with {ended.code}: {saw}"]
    elif fault.errno:
        problems += _broken(fault, hit, ended, saw)
        if ended.code and fault.errno != errno.EROFS and hit.what.name not in syscalls.REMOVING and not hit.what.reads:
            problems += [f"left behind: {name}" for name in rig.left(folder)]
    elif ended.code != -9:
        problems.append(f"it was ended, and yet answered {ended.code}")
    seen = saw
    if fault.then:
        again = _publish(rig, folder, CHANGING, Fault(fault.then))
        seen, found = rig.look(folder, earlier=saw)
        problems += found if again.code in {0, -9} else [*found, f"recovering, it ended with {again.code}"]
    problems += rig.heal(folder, seen)
    if problems:
        problems.append(rig.told())
    return Verdict(
        str(rig.scenario),
        fault.kind,
        str(fault),
        str(hit or ""),
        hit.what.name if hit else "",
        saw,
        ended.code,
        problems,
    )


def _publish(rig: Rig, folder: Path, watched: tuple[Syscall, ...], fault: Fault) -> Ended:
    return trace(lambda: publish_apart(rig.scenario, folder, rig.stderr), watched, folder, fault.decide)


def publish_apart(scenario: Scenario, folder: Path, stderr: Path) -> int:
    """The traced work: files are private even without a umask, and stderr goes to a file."""
    handle = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(handle, 2)
    os.umask(0)
    return attempt(scenario.sink, scenario.target(folder))


def _broken(fault: Fault, hit: Call, ended: Ended, saw: str) -> list[str]:
    """Check a failed call: it has a specific exit code, and leaves the old state unless that code means published."""
    problems = []
    if ended.code not in _TOLD | {0}:
        problems.append(f"the error left with {ended.code}")
    expected = {0: "new", 21: "new"}.get(ended.code, "old")
    if saw != expected:
        problems.append(f"exit {ended.code} goes with the {expected} state, not with {saw}")
    if ended.code == 0 and hit.what.name in syscalls.STORING and fault.errno in _LOST:
        problems.append("data may be lost, and nobody was told")
    if hit.what.name in syscalls.SYNCING and fault.errno in _LOST:
        problems += _published(hit, ended)
    return problems


def _published(hit: Call, ended: Ended) -> list[str]:
    """Files that got their name after a failed sync, although their pages may be lost."""
    later = [call for call in ended.calls if call.n > hit.n and call.what.name in syscalls.PUBLISHING]
    return [f"after the failed sync: {call}" for call in later]
