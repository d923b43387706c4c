"""Models: presets, tokenizer, chat format, checkpoints, number formats. The torch side of what `hub` keeps."""

from catena.core.cpu import guard

guard()  # before anything below imports torch
