"""The one exception that ends a run with a sentence, not a stack trace."""


class UserError(ValueError):
  """Something the user can fix: the message names the value and the fix."""
