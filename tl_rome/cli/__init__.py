"""The command line: it parses, calls the library, prints tables and writes files; a module for each subject.

Torch and the library are imported inside the commands, so that `tl-rome --help` answers at once. Files appear whole or
not at all, so that Ctrl-C leaves nothing half-written. An error of ours is one line on stderr and exit code 1; a usage
error is typer's, with exit code 2.
"""

from tl_rome.cli.app import app as app
from tl_rome.cli.app import main as main
