"""Codecs on speech: metrics, tables, reports and pages to listen to."""
