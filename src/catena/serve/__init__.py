"""Serving: generators behind the OpenAI HTTP form. Without torch: a model is handed in as a generator."""
