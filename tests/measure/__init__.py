"""Measurements that back figures in the docs; run by hand, never by the test suite."""
