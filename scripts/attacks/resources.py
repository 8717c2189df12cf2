"""Commands that get less than they need: rights, disk, files, memory, threads, somebody who reads."""

import os
import random
import resource
import shutil
from collections.abc import Callable
from functools import partial

from . import kills, scenes, trial
from .ledger import Ledger
from .scenes import Place

Need = Callable[[Place], None]
NOBODY = 65534


def _limit(which: int, most: int) -> Need:
    return lambda place: resource.setrlimit(which, (most, most))


def _rights(path: str, mode: int) -> Need:
    """Another user, and a path with these rights; without another user to be, nothing is taken away."""

    def take(place: Place) -> None:
        target = place.work.parent / path
        target.mkdir(parents=True, exist_ok=True) if not target.exists() else None
        if os.getuid() == 0:
            for folder, _, names in os.walk(place.root):
                os.chmod(folder, 0o777)  # noqa: S103
                for name in names:
                    os.chmod(os.path.join(folder, name), 0o666)  # noqa: S103
            os.chmod(target, mode)
            os.setuid(NOBODY)
        else:
            os.chmod(target, mode)

    return take


def _memory(more: int) -> Need:
    def take(place: Place) -> None:
        with open("/proc/self/statm", encoding="ascii") as f:
            now = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))

    return take


def _threads(place: Place) -> None:
    _rights("work", 0o777)(place)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _streams(*handles: int) -> Need:
    def take(place: Place) -> None:
        for handle in handles:
            os.close(handle)

    return take


def _full(place: Place) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def _no_folder(place: Place) -> None:
    gone = place.root / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()


def _no_home(place: Place) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)
    os.environ["TMPDIR"] = "/nowhere"


NEEDS: dict[str, Need] = {
    "out is read-only": _rights("work/out", 0o555),
    "out has no rights": _rights("work/out", 0),
    "cache is read-only": _rights("work/cache", 0o555),
    "cache has no rights": _rights("work/cache", 0),
    "pictures have no rights": _rights("imgs", 0),
    "a picture has no rights": _rights("imgs/00.png", 0),
    "a caption has no rights": _rights("imgs/00.txt", 0),
    "an adapter has no rights": _rights("made/lora.safetensors", 0),
    **{f"files of {n} bytes": _limit(resource.RLIMIT_FSIZE, n) for n in (0, 1, 100, 3000, 20_000, 100_000, 1_000_000)},
    **{f"{n} open files": _limit(resource.RLIMIT_NOFILE, n) for n in (6, 8, 10, 12, 16, 24, 40)},
    **{f"{n} MB of memory": _memory(n << 20) for n in (1, 10, 50, 100, 200, 400)},
    "no threads": _threads,
    "no stdout": _streams(1),
    "no stderr": _streams(2),
    "no streams": _streams(0, 1, 2),
    "a full stdout": _full,
    "no current folder": _no_folder,
    "no home and no place for temporary files": _no_home,
}


def attack(ledger: Ledger, place: Place, only: str | None = None, most: int | None = None) -> None:
    """Every need with every command, once; with time left, again with a run that was killed before."""
    if os.getuid() != 0:
        ledger.note("not run as root: rights are those of this user")
    os.chmod(place.root, 0o777)  # noqa: S103
    wholes = {name: scenes.undisturbed(place, scene) for name, scene in scenes.SCENES.items()}
    pairs = [(need, name) for need in NEEDS if only in (None, need) for name in scenes.SCENES]
    random.Random(ledger.seed).shuffle(pairs)  # noqa: S311
    for need, name in pairs[:most]:
        if not ledger.open():
            return
        scene = scenes.SCENES[name]
        place.set_up(scene)
        outcome = trial.fork(partial(_poor, place, need, place.words(scene.words)))
        _given_back(place)
        end, wrong = kills.verdict(place, scene, wholes[name], outcome)
        ledger.count(need, end if wrong else outcome.kind, not wrong, outcome.seconds, outcome.peak)
        if wrong:
            ledger.fail(need, name, f"{end}: {wrong}")


def _poor(place: Place, need: str, words: list[str]) -> None:
    NEEDS[need](place)
    trial.command(words)


def _given_back(place: Place) -> None:
    for folder, _, names in os.walk(place.root):
        os.chmod(folder, 0o777)  # noqa: S103
        for name in names:
            os.chmod(os.path.join(folder, name), 0o666)  # noqa: S103
    shutil.rmtree(place.root / "gone", ignore_errors=True)
