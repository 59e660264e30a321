"""A worker beside a SQL database: writes to it what waits in write-behind queues. `python -m worker --help`"""
