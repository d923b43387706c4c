"""GGUF, the file format of llama.cpp and what stands on it: a model folder in, one file out.

    architectures   which models, under what keys and names, and what is done to their tensors
    vocabulary      the tokenizer and the chat template, as llama.cpp applies them
    write           the file, tensor by tensor

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The bytes are laid out by the package `gguf`.
"""
