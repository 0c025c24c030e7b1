"""Files on disk: whole-file writes with a header, append-only ledgers, and files on the hub."""
