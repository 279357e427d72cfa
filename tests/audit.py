"""`make audit`: known holes and licences of what is installed here.

Holes are asked of pip-audit's service, which must be reached; licences are
read from the metadata of the packages. Not part of the tests.
"""

from importlib import metadata
import re
import subprocess
import sys

# Licences that a package of this one's licence may be used with.
ALLOWED = re.compile(
    r'\b(MIT|BSD|Apache|PSF|Python-2\.0|MIT-CMU|HPND|MPL[- ]?2|ISC|Zlib|0BSD|'
    r'Unlicense|CC0|Mozilla|Python Software Foundation)', re.I)
_CLASSIFIER = 'License :: '


def licence(package: metadata.Distribution) -> str:
  """A package's licence as it states it; '' where it states none."""
  about = package.metadata
  stated = about.get('License-Expression') or about.get('License') or ''
  classes = [line.removeprefix(_CLASSIFIER).rpartition(' :: ')[2]
             for line in about.get_all('Classifier') or ()
             if line.startswith(_CLASSIFIER)]
  first = stated.strip().splitlines()[:1]
  return ', '.join(classes) or (first[0] if first else '')


def main() -> int:
  """Prints the licences, then runs pip-audit; 1 where either finds fault."""
  doubtful = []
  for package in sorted(metadata.distributions(),
                        key=lambda p: p.metadata['Name'].lower()):
    text = licence(package)
    mark = ' ' if ALLOWED.search(text) else '?'
    print(f'{mark} {package.metadata["Name"]} {package.version}: '
          f'{text or "states none"}')
    if mark == '?':
      doubtful.append(package.metadata['Name'])
  if doubtful:
    print(f'\nto be read by somebody: {", ".join(doubtful)}')
  done = subprocess.run(
      [sys.executable, '-m', 'pip_audit', '--local', '--skip-editable'],
      check=False)
  if done.returncode:
    print('pip-audit has found holes, or could not ask; see above')
  return int(bool(doubtful) or done.returncode != 0)


if __name__ == '__main__':
  sys.exit(main())
