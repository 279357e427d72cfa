"""Every field of a config in words: name, default, meaning, what it allows."""

from collections.abc import Iterator, Mapping
import dataclasses
import textwrap
import types
import typing
from typing import Any

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import fields
from dinojax.evals import alignment
from dinojax.train import settings as settings_lib

TITLE = """Fields of a config: --config.SECTION.FIELD=VALUE sets one, after
--config=NAME. Defaults are those of a file that does not set the field; None
takes a value back. A length has a field for each unit, FIELD_steps,
FIELD_epochs and FIELD_images, of which one is set; one that is given takes the
place of the file's."""
_WIDTH, _NAME = 80, 30


@dataclasses.dataclass(frozen=True)
class Field:
  """One field.

  Attributes:
    name: its key; without the unit if it is a length.
    default: text that a command line would write; '': it must be given.
    text: its meaning.
    allowed: choices or range of its values; '': anything of its type.
  """

  name: str
  default: str
  text: str
  allowed: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of a command.

  Attributes:
    kind: dataclass of its sections.
    meanings: meanings of the sections, by name.
    others: settings of configs of another kind, by the name of one.
  """

  kind: type
  meanings: Mapping[str, str]
  others: Mapping[str, 'Settings'] = dataclasses.field(default_factory=dict)


def of_training() -> Settings:
  """The settings of a run, and of one that aligns texts."""
  of = lambda kind: (kind, fields.texts(kind))
  return Settings(*of(settings_lib.Settings), {
      'dinotxt': Settings(*of(alignment.Settings))})


def sections(settings: Settings | None = None
             ) -> dict[str, tuple[str, list[Field]]]:
  """Meaning and fields of each section; '': fields outside of sections."""
  settings = settings or of_training()
  fields_by_section: dict[str, tuple[str, list[Field]]] = {'': ('', [])}
  meanings, hints = settings.meanings, _hints(settings.kind)
  for field in dataclasses.fields(settings.kind):
    families = config_lib.families_of(hints[field.name])
    for i, cls in enumerate(families):
      name = f'{field.name}, family={cls.FAMILY}' if i else field.name
      fields_by_section[name] = meanings[field.name], list(_fields(cls))
    if not families:
      fields_by_section[''][1].append(_field(
          field, hints[field.name], meanings[field.name], field.name))
  for config, other in settings.others.items():
    for name, inside in sections(other).items():
      if name and fields_by_section.get(name) != inside:
        fields_by_section[f'{name}, --config={config}'] = inside
  return fields_by_section


def _fields(cls: type, prefix: str = '') -> Iterator[Field]:
  """Yields the fields of a section, and of sections inside it."""
  hints, meanings = _hints(cls), fields.texts(cls)
  for field in dataclasses.fields(cls):
    inner = config_lib.families_of(hints[field.name])
    name, text = prefix + field.name, meanings[field.name]
    if not inner or config_lib.is_duration(hints[field.name]):
      yield _field(field, hints[field.name], text, name)
      continue
    yield Field(name, 'section', text, '')
    yield from _fields(inner[0], f'{name}.')


def _hints(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls, include_extras=True)


def _field(field: dataclasses.Field, hint: Any, text: str,
           name: str) -> Field:
  value = field.default
  if field.default_factory is not dataclasses.MISSING:
    value = field.default_factory()
  if isinstance(value, config_lib.Duration):
    value = f'{value.value:g} {value.unit}'
  default = '' if value is dataclasses.MISSING else str(value)
  return Field(name, default, text, _allowed(hint))


def _allowed(hint: Any) -> str:
  """The choices or the range of a type."""
  origin, options = typing.get_origin(hint), typing.get_args(hint)
  if config_lib.is_duration(hint):
    return 'in steps, epochs or images'
  if origin is typing.Literal:
    return f'one of {", ".join(options)}'
  if origin is typing.Annotated:
    return str(options[1])
  if origin in (typing.Union, types.UnionType):
    return next(filter(None, map(_allowed, options)), '')
  return ''


def text(section: str = '', settings: Settings | None = None) -> str:
  """All sections, or one with its fields.

  Args:
    section: name of a section, or of a field; '': all.
    settings: settings of the command; None: of training.

  Raises:
    UserError: no such section or field.
  """
  known = sections(settings)
  of_section = lambda name: _of_section(name, *known[name])
  if not section:
    return '\n\n'.join(of_section(name) for name in known if any(known[name]))
  name = section.removeprefix('config.')
  first = [key for key in known if key.split(',')[0] == name]
  if first:
    return '\n\n'.join(map(of_section, first))
  part, _, rest = name.rpartition('.')
  matches = [field for key in known if key.split(',')[0] == (part or name)
             for field in known[key][1] if _names(field, rest)]
  if not matches:
    matches = [field for field in known[''][1] if field.name == name]
  if matches:
    return '\n'.join(_of_field(field) for field in matches)
  raise errors.UserError(
      f'--help={section} is not a section of a config: '
      f'{config_lib.meant(name, [k for k in known if k])}')


def _names(field: Field, key: str) -> bool:
  """Tells whether a key, with or without a unit, names this field."""
  return key in (field.name, *(f'{field.name}_{u}' for u in config_lib.UNITS))


def _of_section(name: str, meaning: str, inside: list[Field]) -> str:
  head = [f'{name}: {meaning}'] if name else []
  return '\n'.join(head + [_of_field(field) for field in inside])


def _of_field(field: Field) -> str:
  """One or more lines of 80 columns."""
  words = field.text + (f' [{field.allowed}]' if field.allowed else '')
  head = f'  {field.name}' + (f' = {field.default}' if field.default else '')
  lines = textwrap.wrap(words, _WIDTH - _NAME - 1, break_long_words=False)
  if len(head) > _NAME:
    return '\n'.join([head, *(' ' * (_NAME + 1) + line for line in lines)])
  rest = [' ' * (_NAME + 1) + line for line in lines[1:]]
  return '\n'.join([f'{head:{_NAME}} {lines[0] if lines else ""}', *rest])
