"""Weights from the Hugging Face Hub, when they are asked for by name."""

import pathlib
import re

from dinojax.core import errors

PREFIX = 'hf:'
_NAME = re.compile(
    r'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w.-]+))?', re.ASCII)
_FILES = ('*.safetensors', '*.json')


def fetch(source: str) -> tuple[str, tuple[str, ...]]:
  """A path on this machine, and a sentence where it is of the Hub.

  Only 'hf:owner/name' and 'hf:owner/name@REVISION' are: a path that is not
  there is never looked for elsewhere. Only safetensors and JSON files are
  fetched, into the cache that all libraries of the Hub share; it says so
  first.

  Raises:
    UserError: huggingface_hub is not installed, no such model, no access, no
      connection; or a path that is not here.
  """
  if not source.startswith(PREFIX):
    _refuse_names(source)
    return source, ()
  name, revision = _parse(source)
  try:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
  except ImportError as error:
    raise errors.UserError(
        f'{source} is a model of the Hugging Face Hub: '
        '`pip install huggingface_hub` to fetch it') from error
  get = lambda **options: huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=_FILES, **options)
  try:
    place = get(local_files_only=True)
  except (hub_errors.LocalEntryNotFoundError, FileNotFoundError):
    print(f'{source} is fetched from huggingface.co')
    place = _download(get, source, name, hub_errors)
  return place, (f'{source} is {pinned(source, place)}',)


def pinned(source: str, place: str) -> str:
  """The source with the revision of what is in the cache at `place`."""
  name, _ = _parse(source)
  folder = pathlib.Path(place)
  if folder.parent.name != 'snapshots':
    return source
  return f'{PREFIX}{name}@{folder.name}'


def _download(get, source: str, name: str, hub_errors) -> str:
  try:
    return get()
  except (hub_errors.GatedRepoError, hub_errors.RepositoryNotFoundError,
          hub_errors.RevisionNotFoundError) as error:
    raise errors.UserError(
        f'{source}: the Hub does not give it: check the name and the '
        'revision; for models behind a licence, accept it at '
        f'https://huggingface.co/{name} and run `hf auth login`') from error
  except (hub_errors.HfHubHTTPError, hub_errors.HFValidationError,
          hub_errors.LocalEntryNotFoundError, OSError) as error:
    raise errors.UserError(
        f'{source} could not be fetched from huggingface.co: '
        f'{(str(error).splitlines() or ["?"])[0]}') from error


def _parse(source: str) -> tuple[str, str | None]:
  """Name and revision of 'hf:owner/name@REVISION'."""
  match = _NAME.fullmatch(source.removeprefix(PREFIX))
  if match is None:
    raise errors.UserError(
        f'{source} is no name of the Hugging Face Hub: write '
        f'{PREFIX}owner/name, or {PREFIX}owner/name@REVISION')
  return match[1], match[2]


def _refuse_names(source: str):
  """A name without its prefix is a path, and that one is not here."""
  if _NAME.fullmatch(source) and not pathlib.Path(source).exists():
    raise errors.UserError(
        f'{source} does not exist: check the path; a model of the Hugging '
        f'Face Hub is written {PREFIX}{source}')
