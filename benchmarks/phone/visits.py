"""The phones that came: who they are, how far they are, and whether they went away.

What a phone posts is only noted here, at once; `settle` writes it down, which may have to wait for
another process, and so runs beside the server.
"""

import re
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from benchmarks.phone.job import Job
from benchmarks.phone.posted import Figures, Goodbye, Hello, Progress, UnfitError, figures
from pipeline.phones import Phone, PhoneFile

MOST_PHONES = 16
"""In all. Who has the link is trusted to measure, not to fill the disk."""
GONE_S = 75.0
"""Without a word for so long, a phone is taken to have gone away. Pages report every two seconds,
but a browser lets a page in the background speak once a minute only."""


class Visit:
    """One phone's page, from its first word on."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.files: dict[tuple[int, str], PhoneFile] = {}
        self.doing = ""
        self.heard = time.monotonic()
        self.said_goodbye = False
        self.gone = False
        self.due = False
        """Whether there is something to write down."""
        self.kept = False
        self.date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def over(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.said_goodbye or self.gone

    def phone(self, runs: int) -> Phone:
        """What it measured, of `runs` measurements in all."""
        hello, done = self.hello, len(self.files)
        left = None
        if not self.said_goodbye:
            left = f"it went away after {done} of {runs} measurements"
        elif done < runs:
            left = f"only {done} of {runs} measurements arrived"
        name = re.sub(r"[^a-z0-9]+", "-", hello.device.lower()).strip("-")[:40]
        return Phone(
            id=f"{name or 'phone'}-{hello.phone}",
            device=hello.device,
            system=hello.system,
            runtime=hello.browser,
            via="browser",
            date=self.date,
            facts=hello.facts,
            files=tuple(self.files.values()),
            left=left,
        )


class Visits:
    """All phones of one run of the server. `say` is told of what a person wants to know, and `keep`
    puts a phone into the report."""

    def __init__(
        self,
        job: Job,
        say: Callable[[str], None],
        keep: Callable[[Phone], None],
        gone_s: float = GONE_S,
    ) -> None:
        self._job, self._say, self._keep, self._gone_s = job, say, keep, gone_s
        self._all: dict[str, Visit] = {}
        self._through: list[Visit] = []
        """Whole visits of phones whose page was loaded again."""
        self._failures: dict[str, str] = {}

    def hello(self, hello: Hello) -> bool:
        """A page was opened, or loaded again, which begins anew; False where there are too many."""
        if hello.phone not in self._all and len(self._all) >= MOST_PHONES:
            return False
        before = self._all.get(hello.phone)
        if before is not None and before.said_goodbye:
            self._through.append(before)
        self._all[hello.phone] = Visit(hello)
        self._say(f"{self._name(hello.phone)}: {hello.browser} on {hello.system}")
        return True

    def progress(self, told: Progress) -> bool:
        """It is alive; False where nobody knows it."""
        visit = self._heard(told.phone)
        if visit is None:
            return False
        if told.doing != visit.doing:
            self._say(f"{self._name(told.phone)}: {told.share:.0%}, {told.doing}")
        visit.doing = told.doing
        return True

    def figures(self, told: Figures) -> PhoneFile | None:
        """Figures of one file; None where nobody knows the phone, `UnfitError` as `figures`."""
        visit = self._heard(told.phone)
        if visit is None:
            return None
        key = (told.file, told.how)
        if key not in visit.files and len(visit.files) >= self._runs(visit):
            raise UnfitError(f"more than the {self._runs(visit)} measurements that there are")
        found = figures(told, self._job)
        visit.files[key] = found
        visit.due = visit.due or visit.said_goodbye
        return found

    def goodbye(self, told: Goodbye) -> bool:
        """It is through; False where nobody knows it."""
        visit = self._heard(told.phone)
        if visit is None:
            return False
        visit.said_goodbye = visit.due = True
        return True

    def look(self) -> None:
        """Notice the phones that went away."""
        for visit in self._all.values():
            if not visit.over and time.monotonic() - visit.heard > self._gone_s:
                visit.gone = visit.due = True

    def close(self) -> None:
        """The server ends: what unfinished phones measured is kept, too."""
        for visit in self._all.values():
            if not visit.over:
                visit.gone = visit.due = True
        self.settle()

    def settle(self) -> None:
        """Write down what is due. A phone that cannot be kept is told of, and costs no other."""
        whole = {visit.hello.phone for visit in self._through}
        for visit in [*self._through, *self._all.values()]:
            if visit.due:
                visit.due = False
                self._settle(visit, whole)

    def _settle(self, visit: Visit, whole: Collection[str]) -> None:
        name, runs, done = visit.hello.phone, self._runs(visit), len(visit.files)
        how = "is through" if visit.said_goodbye else "went away"
        told = f"{self._name(name)} {how}, {done} of {runs} measurements"
        if not done:
            self._say(f"{told}: nothing to keep")
            return
        if not visit.said_goodbye and name in whole:
            self._say(f"{told}; those of before its page was loaded again stay")
            return
        try:
            self._keep(visit.phone(runs))
        except Exception as error:  # whatever it is, other phones are still at work
            self._failures[name] = f"{told} are not in the report: {error}"
            self._say(self._failures[name])
            return
        visit.kept = True
        self._failures.pop(name, None)
        self._say(f"{told} are in the report")

    @property
    def failures(self) -> list[str]:
        """Why figures are not in the report, in words."""
        return list(self._failures.values())

    @property
    def opened(self) -> int:
        """Phones whose page was opened."""
        return len(self._all)

    @property
    def came(self) -> int:
        """Phones that measured something, or said that they were through."""
        found = [*self._through, *self._all.values()]
        return len({v.hello.phone for v in found if v.files or v.said_goodbye})

    @property
    def kept(self) -> int:
        """Phones whose figures are in the report."""
        found = [*self._through, *self._all.values()]
        return len({visit.hello.phone for visit in found if visit.kept})

    @property
    def busy(self) -> bool:
        """Whether any phone is still at work, or to be written down."""
        found = [*self._through, *self._all.values()]
        return any(not visit.over or visit.due for visit in found)

    def _heard(self, phone: str) -> Visit | None:
        visit = self._all.get(phone)
        if visit is not None:
            visit.heard = time.monotonic()
            visit.gone = False  # it was only slow
        return visit

    def _runs(self, visit: Visit) -> int:
        return len(self._job.files) * visit.hello.ways

    def _name(self, phone: str) -> str:
        """Two phones of one kind are told apart by number."""
        number = list(self._all).index(phone) + 1
        return f"phone {number} ({self._all[phone].hello.device})"
