"""The native engine: batched, streaming, paged. Its inner machines are plain Python; only runner and kv see tensors."""

from catena.core.cpu import guard

guard()
