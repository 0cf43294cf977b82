"""The ways in which a command ends early, their exit codes, and words for their messages."""

import errno
import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with; 128 + n after signal n, when everything is saved.

    After 10 and above, the same command may be started again as it is: a scheduler can do that.
    """

    DONE = 0
    USER_ERROR = 2
    """Something that was given cannot be used."""
    NOT_FINITE = 3
    """Too many batches in a row gave no finite loss or gradient."""
    SAVE_FAILED = 4
    """Checkpoints cannot be written."""
    OUT_OF_MEMORY = 5
    """The step does not fit the devices."""
    TAKEN_OVER = 6
    """Another trainer works in the run folder, since this one gave no sign of life."""
    DATA_STALLED = 10
    """No batch came in time, or a process that reads them is gone."""
    STEP_STALLED = 11
    """A step did not end in time, perhaps for another host."""
    HOST_LOST = 12
    """Another process of the run is gone or hangs."""
    UNREACHABLE = 13
    """A store of data outside this machine did not answer in time."""

    @property
    def may_be_tried_again(self) -> bool:
        """Whether the same command may be started again as it is."""
        return self >= 10


NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Of an OSError: this user may not do that there, or nobody may write to that disk."""


class UserError(Exception):
    """Something a user gave cannot be used; the message says what, why and how to mend it."""


def multiples_near(value: int, divisor: int) -> str:
    """The multiples of `divisor` around a value that is none, in words: `96 or 104`."""
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


class Interrupted(Exception):
    """A run was asked to stop and has saved its state."""

    def __init__(self, number: int, step: int):
        """Args: the signal, and the step that was saved."""
        super().__init__(
            f"stopped by {signal.Signals(number).name}; step {step} is saved. "
            f"The same command goes on from there."
        )
        self.exit_code = 128 + number


class RunFailed(Exception):
    """A run cannot go on; what it had saved before is whole."""

    exit_code: ExitCode


class SaveFailed(RunFailed):
    """A checkpoint could not be written."""

    exit_code = ExitCode.SAVE_FAILED

    def __init__(self, place: str, problem: str):
        """Args: folder or URL of the checkpoints, and what went wrong."""
        super().__init__(
            f"{problem}. The steps in {place} that were saved before are whole: {self.remedy}"
        )

    remedy = "make room or mend the disk, then the same command goes on from the newest"


class StoreAway(SaveFailed):
    """A checkpoint is written on this machine, and its store did not take it."""

    exit_code = ExitCode.UNREACHABLE
    remedy = (
        "when the store takes it (renew the credentials where it refused them), the same command "
        "on this machine puts there what was written here, and goes on; on another machine it goes "
        "on from the newest"
    )


class NotFinite(RunFailed):
    """Too many steps in a row gave no finite loss or gradient."""

    exit_code = ExitCode.NOT_FINITE


class OutOfMemory(RunFailed):
    """The step does not fit the memory of the devices."""

    exit_code = ExitCode.OUT_OF_MEMORY


class DataLost(RunFailed):
    """A process that reads batches is gone."""

    exit_code = ExitCode.DATA_STALLED


class Unreachable(RunFailed):
    """A store outside this machine did not answer in time."""

    exit_code = ExitCode.UNREACHABLE


class UnusableError(UserError):
    """The sources cannot be used as they are; the ledger says which records are to blame."""
