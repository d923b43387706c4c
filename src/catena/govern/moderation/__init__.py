"""Moderation: what may be asked and answered, of whole texts and of texts that are still being written.

    text -> detectors (words, personal data, classifier) -> findings -> block, mask or flag -> what may leave

A streamed text leaves only up to where no detector can still change its mind: how it is cut does not matter.
"""
