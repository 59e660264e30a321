"""A worker beside a SQL database: writes to it what waits in write-behind queues, and loads from it what readers miss.

`python -m worker --help`
"""
