"""Tests whether callbacks, searchers and schedulers leak; the pytest plugin is made of it."""

from __future__ import annotations

from ray_tune_memguard.testing.leak_test import LeakTest

__all__ = ["LeakTest"]
