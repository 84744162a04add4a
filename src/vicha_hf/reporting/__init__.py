"""Self-contained HTML reports of a run: charts, tables and a retrieval gallery in one file without external resources."""
