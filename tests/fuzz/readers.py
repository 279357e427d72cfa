"""What is tried with damaged bytes: each returns a word, or has a fault."""

from dinojax.data import images


def image(data: bytes) -> str:
  """An image, header and pixels."""
  try:
    images.open_image(data).decode()
  except images.BadImage:
    return 'bad image'
  return 'read'
