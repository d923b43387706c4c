"""Drift: is what is asked and answered now like what was asked and answered before?

traces of a time, or a dataset -> facts (lengths, language, topic, refusal, ...) -> PSI, KS, permutations -> verdict
"""
