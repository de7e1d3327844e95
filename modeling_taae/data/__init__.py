"""Reads recorded speech from files, folders, tables, archives and the Hub."""
