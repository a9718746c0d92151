"""Alerts and dashboards for operators."""
