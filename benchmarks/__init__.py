"""Benchmarks: latency, throughput, memory and quality of bundles and of their peers."""
