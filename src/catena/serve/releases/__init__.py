"""Releases: a new model beside the old one, with few users first, that goes back by itself. `docs/gateway.md`."""
