"""When several processes save: at the same micro-batch, though each has a clock and signals of its own."""

import time

from hessabs.training.devices import sharing

_SECONDS = 1.0


class Poll:
    """A question to all processes, about once a second. A class, against the house rule: it counts.

    A collective at every step would cost more than a small step does. So the processes count steps, and agree
    each time after how many they ask again, from how long the last ones took.
    """

    def __init__(self) -> None:
        self._every = self._left = 1
        self._since = time.perf_counter()

    def ask(self, due: bool, signum: int | None) -> tuple[bool, int | None]:
        """Say what all agree on; all must call, once a step.

        Args:
          due: Whether the clock of this process says that it is time to save; that of process 0 counts.
          signum: The signal that this process got, if it did.

        Returns:
          (whether to save, the signal that any of them got), the same in all; (False, None) between questions.
        """
        self._left -= 1
        if self._left:
            return False, None
        now = time.perf_counter()
        answers = sharing.gather([due, signum or 0, now - self._since])
        self._since = now
        self._every = self._left = next_number(self._every, float(answers[:, 2].max()))
        return bool(answers[0, 0]), int(answers[:, 1].max()) or None


def next_number(steps: int, seconds: float) -> int:
    """Choose after how many steps to ask again: those of a second, at most twice as many as the last time.

    Args:
      steps: Steps since the last question.
      seconds: How long they took.

    Returns:
      A number of steps, at least 1.

    Example:
      >>> next_number(8, 0.1), next_number(8, 0.8), next_number(8, 60.0)
      (16, 10, 1)
    """
    return max(1, min(2 * steps, int(steps * _SECONDS / max(seconds, 1e-6))))
