"""The two ways in which a command ends early on purpose, and words for their messages."""

import signal


class UserError(Exception):
    """Something a user gave cannot be used; the message says what, why and how to mend it."""

    exit_code = 2


class UnreachableError(UserError):
    """Something outside this machine did not answer; trying again later may help."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: whoever starts runs may start this one again."""


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
