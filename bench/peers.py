"""PyTorch packages that dinojax is compared with, imported where they can be.

The torchvision on PyPI is built for CUDA. Beside a CPU build of PyTorch its
compiled operators cannot be loaded, and importing it fails where it describes
two of them; timm and transformers import it. Nothing here detects objects: it
is enough that the two operators have a name.
"""

_OPERATORS = ('nms', 'qnms')
_library = []  # an operator lives as long as its library


def torchvision():
  """The package torchvision, with all that runs on Pillow and tensors."""
  try:
    import torchvision as package
  except RuntimeError as error:
    if 'operator torchvision::' not in str(error):
      raise
    import torch
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in _OPERATORS:
      library.define(f'{name}(Tensor dets, Tensor scores, '
                     'float iou_threshold) -> Tensor')
    _library.append(library)
    import torchvision as package
  return package


def timm():
  """The package timm."""
  torchvision()
  import timm as package
  return package


def transformers():
  """The package transformers."""
  torchvision()
  import transformers as package
  return package
