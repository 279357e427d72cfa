"""Profiler window over a few steps of a run."""

import time

import jax


class Window:
  """Opens before its first step, and is written after its last.

  Attributes:
    is_open: True between the two.
  """

  def __init__(self, window: tuple[int, int] | None, total_steps: int,
               folder: str):
    """Plans the window.

    Args:
      window: first step and number of steps; None: there is none.
      total_steps: length of the run.
      folder: where the profile is written.
    """
    self._window, self.folder, self.is_open = window, folder, False
    self._last = min(sum(window), total_steps) if window else None

  def begin(self, step: int):
    """Opens the window before its first step."""
    if self._window and step == self._window[0]:
      jax.profiler.start_trace(self.folder)
      self.is_open = True

  def ends(self, step: int | None) -> bool:
    """Tells whether it ends after this step; None: it ends now."""
    return self.is_open and step in (None, self._last)

  def end(self) -> float:
    """Writes the profile; returns the seconds that it takes."""
    self.is_open, began = False, time.monotonic()
    jax.profiler.stop_trace()
    return time.monotonic() - began
