"""Work that nobody waits for: OpenAI's Files and Batch API, and responses in the background.

files.py     /v1/files        bytes by content, rows in the queue's database
batches.py   /v1/batches      one file of requests, two files of answers
background.py  /v1/responses/{id}
queue.py     jobs, leases, results: SQLite or PostgreSQL
runner.py    takes jobs, asks like anybody else (serve/inner.py), writes each result once
service.py   all of it, as the gateway has it
"""
