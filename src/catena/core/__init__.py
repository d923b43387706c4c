"""The vocabulary: types, protocols, stage, config, errors, events. It imports nothing else of Catena."""
