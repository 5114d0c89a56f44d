"""The loop from step to step: when a run looks up, saves and stops, whatever a step of it is."""

import abc
from typing import Any

from lmjax.training.plan import TrainingConfig
from lmjax.training.preemption import PreemptedError, Preemption
from lmjax.training.state import TrainState
from lmjax.training.watch import due


class Stepping(abc.ABC):
    """What `advance` drives: one run, or several in one program.

    Attributes:
      training: how many steps, and when to look up.
    """

    training: TrainingConfig

    @abc.abstractmethod
    def step(self, step: int, state: TrainState) -> TrainState:
        """Reads a batch and makes update `step` of it; raises DivergedError as `flush` does."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Looks at the numbers of all steps up to now; raises DivergedError."""

    @abc.abstractmethod
    def look_up(self, step: int, state: TrainState, evaluate: bool, save: bool) -> None:
        """Looks at held-out data and writes what it saw, or saves, or both."""

    @abc.abstractmethod
    def restart(self) -> None:
        """Sets the clock, after work that is not training."""

    @abc.abstractmethod
    def wait(self) -> str:
        """Returns when what was saved is on the disk, and says where."""

    def advance(self, state: TrainState, done: int) -> Any:
        """From step `done` to the last one; returns the last state.

        Raises:
          DivergedError: of the steps since nothing is saved.
          PreemptedError: SIGTERM came; the step it had reached is saved.
        """
        t = self.training
        with Preemption() as preemption:
            if done == 0:
                self.look_up(0, state, evaluate=True, save=False)
            self.restart()
            for step in range(done + 1, t.steps + 1):
                state = self.step(step, state)
                last = step == t.steps
                evaluate = last or due(step, t.eval_every)
                stop = not last and preemption.requested(step)
                save = last or stop or due(step, t.checkpoint_every)
                if evaluate or save:
                    self.flush()  # nothing is saved before its numbers are looked at
                    self.look_up(step, state, evaluate, save)
                if stop:
                    raise PreemptedError(
                        f"step {step}: told to stop (SIGTERM); saved in {self.wait()},"
                        " the same command continues"
                    )
                if evaluate or save:
                    self.restart()
        return state
