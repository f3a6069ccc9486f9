"""Rows that do not hold yet, by check: what is found instead. To be emptied."""

OPEN: dict[str, dict[str, str]] = {"fuse": {}, "expand": {}, "name": {}, "save": {}}
