"""``python -m tests.cluster``: a real Kubernetes on this machine, for people and for the suite."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.cluster import images, machine, programs
from tests.cluster.places import REPOSITORY, Places
from tests.cluster.programs import MissingError
from tests.cluster.supervisor import Supervisor


def main() -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--instance", default=os.environ.get("FC_CLUSTER_INSTANCE", "dev"),
                        help="several clusters may run side by side (default: dev)")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build or find all programs; make the images' base")
    commands.add_parser("up", help="start it and leave it running")
    commands.add_parser("down", help="end it and remove all of it but its logs")
    commands.add_parser("status", help="say whether it runs, and where it is")
    commands.add_parser("image", help="build the project's image, and give it to the cluster")
    enter = commands.add_parser("enter", help="run a command, or a shell, in its network")
    enter.add_argument("words", nargs=argparse.REMAINDER)
    tell = commands.add_parser("tell", help="start, stop, kill, pause or resume one of its parts")
    tell.add_argument("action", choices=["start", "stop", "kill", "pause", "resume", "status"])
    tell.add_argument("part", nargs="?")
    commands.add_parser("demo", help="leave it running with the project's image and kinds in it")
    commands.add_parser("test", help="do all of that for the suite, and take it down again")
    commands.add_parser("supervise")
    given, words = parser.parse_known_args()
    if given.command == "test":
        given.words = words  # for pytest
    elif words:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    try:
        return _run(given)
    except (MissingError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(given: argparse.Namespace) -> int:
    places = Places(given.instance)
    if given.command == "supervise":
        Supervisor(places, programs.found(places)).run()
        return 0
    if given.command == "build":
        _provide(places)
        images.make_pause(places)
        images.make_base(places)
        return 0
    if given.command == "up":
        here = _provide(places)
        seconds = here.up(say=print)
        print(", ".join(f"{name} {value:g} s" for name, value in seconds.items()))
        here.import_image(images.make_pause(places))
        return _show(here)
    if given.command == "demo":
        return _demo(places)
    if given.command == "test":
        return _test(places, given.words)
    here = machine.find(given.instance)
    if given.command == "down":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # half of it would be worse
        here.down()
        print(f"the cluster {places.name} is gone")
        return 0
    if given.command == "status":
        return _show(here)
    if given.command == "image":
        print(images.provide_image(here, print))
        return 0
    if given.command == "tell":
        print(here.tell(given.action, given.part))
        return 0
    words = given.words or [os.environ.get("SHELL", "/bin/sh")]
    os.execvpe("nsenter", here.inside(*words), here.environment())
    return 0


def _provide(places: Places) -> machine.Machine:
    """What a cluster needs of this machine.

    Raises:
        MissingError: something can't be had.
    """
    if reason := machine.unfit():
        raise MissingError(reason)
    return machine.Machine(places, programs.provide(places, print))


def _demo(places: Places) -> int:
    """A cluster that stays, for a person: our image is imported, our kinds are known."""
    here = _provide(places)
    images.make_pause(places)
    images.make_base(places, print)
    if here.state()["state"] != "ready":
        here.up(say=print)
        here.import_image(images.make_pause(places))
    image = images.provide_image(here, print)
    crds = str(REPOSITORY / "crds")
    subprocess.run(
        here.inside(here.programs["kubectl"], "apply", "--server-side", "-f", crds),
        env=here.environment(),
        check=True,
    )
    print(f"image {image}; `python -m tests.cluster --instance {places.instance} down` ends it")
    return _show(here)


def _test(places: Places, words: list[str]) -> int:
    """The suite on a cluster of its own, which goes however the suite ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _stage("programs"):
        try:
            here = _provide(places)
        except MissingError as error:
            # In CI a test that can't run is a failed one; elsewhere it says why it does not.
            print(f"the cluster suite is {'failed' if _IN_CI else 'skipped'}: {error}")
            return 1 if _IN_CI else 0
    with _stage("base image"):
        images.make_pause(places)
        images.make_base(places, print)
    began_s = time.monotonic()
    with machine.running(here, print) as cluster:
        cluster.import_image(images.make_pause(places))
        print(f"  cluster up: {time.monotonic() - began_s:.1f} s")
        with _stage("project's image"):
            images.provide_image(cluster, print)
        with _stage("tests"):
            return _pytest(places, words)


_IN_CI = bool(os.environ.get("CI"))


def _pytest(places: Places, words: list[str]) -> int:
    process = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig",
            "TERM",
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "cluster",
            "tests/cluster",
            *words,
        ],
        cwd=REPOSITORY,
        env={**os.environ, "FC_CLUSTER_INSTANCE": places.instance},
    )
    try:
        return process.wait()
    finally:
        # Ctrl-C has reached it too; whatever else ends us does not leave it behind.
        while process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(30)


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    print(f"  {name}: {time.monotonic() - began_s:.1f} s", flush=True)


def _show(here: machine.Machine) -> int:
    state = here.state()
    print(f"{here.places.name}: {state['state']} {state.get('message', '')}".rstrip())
    if state["state"] == "down":
        return 1
    print(f"  kubeconfig  {here.places.kubeconfig}")
    print(f"  enter       {here.places.enter} kubectl get pods -A")
    print(f"  namespace   nsenter --net={here.places.network}")
    print(f"  logs        {here.places.logs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
