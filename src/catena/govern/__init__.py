"""Governance: what may go on. Reports and models in, a decision out."""
