"""Recurrence over depth: looped models, their cache, and the interface that samplers use."""
