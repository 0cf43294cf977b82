"""The two ways in which a command ends early on purpose."""

import signal


class UserError(Exception):
    """Something a user gave cannot be used; the message says what, why and how to mend it."""


class Interrupted(Exception):
    """A run was asked to stop and has saved its state."""

    def __init__(self, number: int, step: int):
        """Args: the signal, and the step that was saved."""
        super().__init__(
            f"stopped by {signal.Signals(number).name}; step {step} is saved. "
            f"The same command goes on from there."
        )
        self.exit_code = 128 + number
