"""The gateway: many replicas of many models behind one address. `docs/gateway.md` is its guide."""
