"""One process tree at a time owns a state directory."""

import signal
import subprocess
import sys

import pytest

from fc_operator.app.state import StateDirectory
from fc_operator.errors import HumanNeededError

HOLD = """
import sys, time
from pathlib import Path
from fc_operator.app.state import StateDirectory
StateDirectory(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_start_on_the_same_directory_is_refused_and_told_whom_to_stop(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HumanNeededError, match=rf"process {holder.pid}\) runs on"):
            StateDirectory(tmp_path).acquire()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    # The lock went with the killed process: nothing has to be cleaned up by hand.
    StateDirectory(tmp_path).acquire().release()


def test_release_lets_another_have_it(tmp_path):
    first = StateDirectory(tmp_path / "new").acquire()
    first.release()
    second = StateDirectory(tmp_path / "new").acquire()
    second.release()
    second.release()


def test_a_directory_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HumanNeededError, match="can't be used"):
        StateDirectory(tmp_path / "file" / "state").acquire()
