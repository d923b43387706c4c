"""Other engines behind the generators' registry: programs of their own, spoken to over HTTP.

config     what can be set                       engines   how each one is started, from the settings to its flags
process    a child: start, ready, crash, stop    guard     the small program between us and the child
wire       what is asked, what comes back        openai, llama_cpp, sglang, lmdeploy    the dialects
answer     pieces to deltas and completions      remote    the generator over all of it
"""
