"""`python -m dinojax COMMAND`: the console command without its script."""

from dinojax.commands import cli

if __name__ == '__main__':
  cli.main()
