"""Pictures and tables of traces and of averages."""
