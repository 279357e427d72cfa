"""The one exception that ends a run with a sentence, not a stack trace."""

from dinojax.core import text


class UserError(ValueError):
  """Something the user can fix: the message names the value and the fix."""

  def __init__(self, message: str):
    # Names that it quotes may come from others.
    super().__init__(text.visible(str(message)))
