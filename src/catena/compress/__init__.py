"""Compression: a model in, a smaller model out, in formats that other engines load."""
