"""The command line: parses, calls the Python API, prints. One file for each noun; nothing is decided here."""
