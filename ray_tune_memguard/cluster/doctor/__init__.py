"""Examines a cluster: ``gather`` reads facts, ``checks`` make findings of them, ``fixes`` mend."""
