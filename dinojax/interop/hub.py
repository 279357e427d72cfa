"""Weights from the Hugging Face Hub, when they are asked for by name."""

import pathlib
import re

from dinojax.core import errors

_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
_WEIGHTS = ('.safetensors', '.pth', '.pt', '.bin')  # a path, not a name
_FILES = ('*.safetensors', '*.json')


def fetch(path: str) -> str:
  """A path on this machine; 'owner/name' is fetched if nothing is there.

  Only safetensors and JSON files are fetched, into the cache that all
  libraries of the Hub share; it says so first.

  Raises:
    UserError: huggingface_hub is not installed, no such model, no access, no
      connection.
  """
  if (pathlib.Path(path).expanduser().exists() or path.endswith(_WEIGHTS)
      or not _NAME.fullmatch(path)):
    return path
  try:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
  except ImportError as error:
    raise errors.UserError(
        f'{path} is not on this machine: check the path; if it is a model of '
        'the Hugging Face Hub, `pip install huggingface_hub` to fetch it'
    ) from error
  try:
    return huggingface_hub.snapshot_download(
        path, allow_patterns=_FILES, local_files_only=True)
  except (hub_errors.LocalEntryNotFoundError, FileNotFoundError):
    print(f'{path} is fetched from huggingface.co')
  try:
    return huggingface_hub.snapshot_download(path, allow_patterns=_FILES)
  except (hub_errors.GatedRepoError, hub_errors.RepositoryNotFoundError
          ) as error:
    raise errors.UserError(
        f'{path} is not on this machine, and the Hub does not give it: check '
        f'the name; for models behind a licence, accept it at '
        f'https://huggingface.co/{path} and run `hf auth login`') from error
  except (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError,
          OSError) as error:
    raise errors.UserError(
        f'{path} is not on this machine and could not be fetched from '
        f'huggingface.co: {(str(error).splitlines() or ["?"])[0]}') from error
