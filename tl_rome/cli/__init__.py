"""The command line: it parses, calls the library, prints tables and writes files; a module for each subject.

Torch and the library are imported inside the commands, so that `tl-rome --help` answers at once. Files appear whole or
not at all, so that Ctrl-C leaves nothing half-written.

Exit codes: 0 is success; 1 is an error of ours, with one line on stderr; 2 is a usage error, shown by typer; 3 means
that `tl-rome edit` wrote its file but the edit did not take, or `tl-rome train` but training did not converge; 130 is
Ctrl-C.
"""

from tl_rome.cli.app import app as app
from tl_rome.cli.app import main as main
