"""Formats: files of any kind become pieces (rows and rejects), each read in a child process with limits."""
