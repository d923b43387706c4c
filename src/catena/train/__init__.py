"""Training: samples to models. The stages, and the loop that they share."""

from catena.core.cpu import guard

guard()  # before anything below imports torch
