"""Collecting: the first step of the data path. Web sites come in as media samples, with their source and licence."""
