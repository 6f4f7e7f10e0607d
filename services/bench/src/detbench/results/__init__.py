"""What was measured: the schemas of the files that runs leave, which the runners write and every exporter reads.

Times are seconds and sizes bytes, unless a name says otherwise: `_ms` and `_mb` are for people.
"""
