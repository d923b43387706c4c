"""Repositories: the store as hub clients see it. Names are repositories, versions commits, with branches and tags."""
