"""Workloads that declare themselves: containers by labels, systemd units by X-Mycelia options."""
