"""Parts of `examples/ablation.py`: what is compared, the runs, their corpora, and the report."""
