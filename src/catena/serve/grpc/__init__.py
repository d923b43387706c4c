"""Models over gRPC: `catena.proto`, the code made of it, and a server in front of the same application as HTTP."""
