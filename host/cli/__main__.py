"""`python -m entropi.host.cli`, which torchrun can start: the `entropi` command."""

from entropi.host.cli import main

main()
